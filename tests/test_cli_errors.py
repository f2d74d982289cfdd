"""What a user can do wrong: each through the command, one line that names it, and nothing written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import msefpn
from msefpn.cli import COMMANDS, main
from tests import TINY, copy_to

AS_PROCESS = {
    "unknown command",
    "unknown backbone",
    "data folder missing",
    "resume from half a state",
    "predict without sources",
}
"""Cases that run as a process of their own; the others call what it calls, here."""
FORKED = "resume from half a state"
"""The one of them that loads torch: its process has it from the start."""


@dataclass
class Place:
    """Where one case happens."""

    folder: Path
    data: Path
    """A good data set."""
    run: Path
    """A good run of one epoch on it."""

    @property
    def out(self) -> Path:
        """The folder that must stay as it is."""
        return self.folder / "out"

    def text(self, name: str, content: str) -> Path:
        """Write a file."""
        (self.folder / name).write_text(content)
        return self.folder / name

    def changed_data(self, change: Callable[[dict[str, Any]], object] | str) -> Path:
        """Copy the data set with another train.json: changed in place, or this text."""
        copy = self.folder / "data"
        copy.mkdir()
        for name in ("train", "val", "val.json"):
            copy_to(self.data / name, copy / name)
        content = json.loads((self.data / "train.json").read_text())
        if isinstance(change, str):
            (copy / "train.json").write_text(change)
        else:
            change(content)
            (copy / "train.json").write_text(json.dumps(content))
        return copy

    def changed_run(self, **files: bytes | None) -> Path:
        """Copy the run to the out folder; files by stem have other bytes, or are missing."""
        shutil.copytree(self.run, self.out, ignore=shutil.ignore_patterns("tensorboard"))
        for stem, content in files.items():
            for path in self.out.glob(f"{stem}.*"):
                path.unlink() if content is None else path.write_bytes(content)
        return self.out

    def half(self, name: str) -> bytes:
        """The first half of one of the run's files."""
        content = (self.run / name).read_bytes()
        return content[: len(content) // 2]


Arguments = list[str | Path]
CASES: dict[str, tuple[Callable[[Place], Arguments], str]] = {}
"""Name -> (arguments, what the line must say)."""


def case(name: str, says: str) -> Callable[[Callable[[Place], Arguments]], None]:
    def add(make: Callable[[Place], Arguments]) -> None:
        CASES[name] = (make, says)

    return add


def training(name: str, says: str, *arguments: str | Path) -> None:
    """A case of `train` on good data with wrong options."""
    case(name, says)(lambda p: ["train", "--data", p.data, "--recipe", TINY, "--out", p.out, *arguments])


def faulty(name: str, says: str, change: Callable[[dict[str, Any]], object] | str) -> None:
    """A case of `train` on faulty data."""
    case(name, says)(lambda p: ["train", "--data", p.changed_data(change), "--recipe", TINY, "--out", p.out])


def resumed(name: str, says: str, *arguments: str, **files: bytes | None) -> None:
    """A case of `train --resume` with other options or files."""
    case(name, says)(lambda p: ["train", "--resume", "--out", p.changed_run(**files), *arguments])


training("unknown command line option", "--epoch", "--epoch", "3")
case("unknown command", "'trian'")(lambda p: ["trian", "--out", p.out])
training("unknown detector", "'faster_rcn'", "--detector", "faster_rcn")
training("unknown backbone", "resnet51x", "--backbone", "resnet51x")
training("unknown neck", "'mse_fpm'", "--neck", "mse_fpm")
training("unknown augmentation", "'hard'", "--augment", "hard")
case("unknown recipe", "'fast'")(lambda p: ["train", "--data", p.data, "--recipe", "fast", "--out", p.out])
case("unknown recipe key", "'epoch'")(
    lambda p: ["train", "--data", p.data, "--recipe", p.text("r.yaml", "epoch: 3"), "--out", p.out]
)
case("recipe is no YAML", "r.yaml")(
    lambda p: ["train", "--data", p.data, "--recipe", p.text("r.yaml", "a: [1"), "--out", p.out]
)
training("number that is none", "--epochs", "--epochs", "many")
training("size that is none", "'big'", "--size", "big")
training("size out of range", "'20000'", "--size", "20000")
training("learning rate 0", "lr", "--lr", "0")
training("no epochs", "epochs", "--epochs", "0")
training("no steps", "steps", "--steps", "0")
training("seed below 0", "seed is -1", "--seed", "-1")
training("annotations that are a folder", "is a folder", "--train-json", ".")
training("path too long", "File name too long", "--data", "x" * 300)
training("batch not divisible", "batch 3", "--batch", "3", "--devices", "2")
training("initial weights missing", "nowhere.safetensors", "--init", "nowhere.safetensors")
case("initial weights broken", "half.safetensors")(
    lambda p: [
        *("train", "--data", p.data, "--recipe", TINY, "--out", p.out, "--init"),
        p.text("half.safetensors", "not tensors at all"),
    ]
)


@case("nothing of the initial weights fits", "other.safetensors")
def _(p: Place) -> Arguments:
    save_file({"head.weight": torch.zeros(3, 5)}, p.folder / "other.safetensors")
    file = p.folder / "other.safetensors"
    return ["train", "--data", p.data, "--recipe", TINY, "--out", p.out, "--init", file]


def random_weights(name: str, options: str) -> None:
    """A case of `train` that would never train a part of its random weights."""
    case(name, "set backbone_options: {frozen_stages: -1, train_norm: true}")(
        lambda p: [
            *("train", "--data", p.data, "--out", p.out, "--recipe"),
            p.text("r.yaml", f"parent: {TINY}\nbackbone_options: {options}"),
        ]
    )


random_weights("random weights frozen", "{frozen_stages: 1}")
random_weights("random weights with fixed statistics", "{train_norm: false}")
case("data folder missing", "nodata")(lambda p: ["train", "--data", p.folder / "nodata", "--out", p.out])
case("no annotations in the data folder", "train.json")(
    lambda p: ["train", "--data", p.folder, "--out", p.out]
)
case("built-in set with an unknown detector", "'faster_rcn'")(
    lambda p: ["train", "--detector", "faster_rcn", "--out", p.out]
)
training("data folder beside all jsons", "not be used", "--train-json", "t.json", "--val-json", "v.json")
case("data folder beside the json to evaluate on", "would not be used")(
    lambda p: ["evaluate", p.run, "--data", p.data, "--json", p.data / "val.json", "--out", p.out]
)
case("annotations without validation data", "val")(
    lambda p: ["train", "--train-json", p.data / "train.json", "--out", p.out]
)
faulty("annotations are no JSON", "train.json", '{"images": [')
faulty("annotations without a key", "'categories'", lambda c: c.pop("categories"))
faulty("unknown category", "category_id 99", lambda c: c["annotations"][0].update(category_id=99))
faulty("missing image", "lost.jpg", lambda c: c["images"][2].update(file_name="lost.jpg"))
faulty("no boxes at all", "no boxes", lambda c: c.update(annotations=[]))
faulty("duplicate image id", "image 1", lambda c: c["images"][1].update(id=1))
faulty("other classes to validate on", "ellipse", lambda c: c["categories"][0].update(name="ellipse"))


@case("all images truncated", "no boxes")
def _(p: Place) -> Arguments:
    data = p.changed_data(lambda c: c.update(images=c["images"][:2]))
    shutil.rmtree(data / "train")
    (data / "train").mkdir()
    for file in sorted((p.data / "train").glob("*.jpg"))[:2]:
        (data / "train" / file.name).write_bytes(file.read_bytes()[:900])
    return ["train", "--data", data, "--recipe", TINY, "--out", p.out]


@case("out folder not empty", "not empty")
def _(p: Place) -> Arguments:
    p.out.mkdir()
    (p.out / "precious.txt").write_text("mine")
    return ["train", "--data", p.data, "--recipe", TINY, "--out", p.out]


case("out is a file", "is a file")(lambda p: ["train", "--data", p.data, "--out", p.text("out", "")])
case("out under a file", "cannot be made")(
    lambda p: ["train", "--data", p.data, "--out", p.text("file", "") / "out"]
)
case("out cannot be written", "/proc/msefpn")(
    lambda p: ["train", "--data", p.data, "--recipe", TINY, "--out", "/proc/msefpn"]
)


@case("no space", "no space")
def _(p: Place) -> Arguments:
    p.out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", p.out], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    return ["train", "--data", p.data, "--recipe", TINY, "--out", p.out]


training("no GPU", "device gpu", "--device", "gpu")
case("resume without a run", "not a run folder")(lambda p: ["train", "--resume", "--out", p.out])
case("resume without out", "--out")(lambda p: ["train", "--resume", "--data", p.data])
resumed("resume with another learning rate", "lr", "--lr", "1")
resumed("resume with a recipe", "recipe", "--recipe", str(TINY))
resumed("resume of a finished run", "epochs")
resumed("resume to steps that are done", "--steps", "--steps", "2", "--epochs", "3")
resumed("resume without its state", "resume.ckpt", resume=None)
case("resume from half a state", "resume.ckpt")(
    lambda p: ["train", "--resume", "--out", p.changed_run(resume=p.half("resume.ckpt"))]
)


@case("resume with other data", "the data given")
def _(p: Place) -> Arguments:
    data = p.changed_data(lambda c: c["annotations"].pop())
    return ["train", "--resume", "--out", p.changed_run(), "--data", data]


@case("resume after the data has changed", "has changed")
def _(p: Place) -> Arguments:
    data = p.changed_data(lambda c: c["annotations"].pop())
    run = p.changed_run()
    (run / "data.yaml").write_text((run / "data.yaml").read_text().replace(str(p.data), str(data)))
    return ["train", "--resume", "--out", run, "--epochs", "3"]


@case("resume of other classes", "other classes")
def _(p: Place) -> Arguments:
    data = p.changed_data(lambda c: c["categories"][0].update(name="ellipse"))
    (data / "val.json").unlink()
    (data / "val.json").write_text((p.data / "val.json").read_text().replace('"circle"', '"ellipse"'))
    run = p.changed_run()
    (run / "data.yaml").write_text((run / "data.yaml").read_text().replace(str(p.data), str(data)))
    return ["train", "--resume", "--out", run, "--epochs", "3"]


case("run without weights", "best.safetensors")(
    lambda p: ["evaluate", p.changed_run(best=None, last=None), "--out", p.folder / "numbers"]
)
case("half-written weights", "best.safetensors")(
    lambda p: ["predict", p.changed_run(best=p.half("best.safetensors")), p.data / "val"]
)
case("no run", "no-such-run")(lambda p: ["evaluate", "no-such-run", "--out", p.out])


@case("evaluation on other classes", "ellipse")
def _(p: Place) -> Arguments:
    data = p.changed_data(lambda c: c["categories"][0].update(name="ellipse"))
    return ["evaluate", p.run, "--data", data, "--split", "train", "--out", p.out]


case("workers below 0", "workers is -1")(lambda p: ["evaluate", p.run, "--workers", "-1", "--out", p.out])
case("unknown split", "'test'")(lambda p: ["evaluate", p.run, "--split", "test", "--out", p.out])
case("no images", "missing/*.jpg")(lambda p: ["predict", p.run, "missing/*.jpg", "--out", p.out])
case("no image that can be read", "torn.jpg")(
    lambda p: ["predict", p.run, p.text("torn.jpg", "no image"), "--out", p.out]
)
case("score out of range", "score")(
    lambda p: ["predict", p.run, p.data / "val", "--score", "30", "--out", p.out]
)
case("predict without sources", "sources")(lambda p: ["predict", p.run, "--out", p.out])
case("check without data", "data")(lambda p: ["check"])


@dataclass
class Outcome:
    """What a command did."""

    code: int
    err: str
    before: dict[str, bytes] | None
    after: dict[str, bytes] | None
    new_files: set[Path]


def content_of(folder: Path) -> dict[str, bytes] | None:
    """All files of a folder, or the file itself; None where there is nothing."""
    if folder.is_dir():
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
    return {"": folder.read_bytes()} if folder.is_file() else None


def observe(name: str, place: Place, command: Callable[[list[str]], tuple[int, str]]) -> Outcome:
    """Prepare a case, run it by `command`, and compare the files."""
    arguments = [str(argument) for argument in CASES[name][0](place)]
    before, files = content_of(place.out), set(place.folder.rglob("*"))
    code, err = command(arguments)
    return Outcome(code, err, before, content_of(place.out), set(place.folder.rglob("*")) - files)


def run_command(place: Place, arguments: list[str]) -> tuple[int, str]:
    """Run the command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "msefpn", *arguments],
        capture_output=True,
        text=True,
        cwd=place.folder,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def places(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """A folder for each case, all with one good data set and run."""
    base = tmp_path_factory.mktemp("errors")
    run = msefpn.train(tiny_set, recipe=TINY, epochs=1, workers=0, out=base / "good")
    made = {name: Place(base / re.sub(r"\W+", "-", name), tiny_set, run) for name in CASES}
    for place in made.values():
        place.folder.mkdir()
    yield made
    for place in made.values():
        if place.out.is_mount():
            subprocess.run(["umount", place.out], check=True)


@pytest.mark.parametrize("name", CASES)
def test_a_user_error_is_one_line_and_changes_nothing(
    name: str,
    places: dict[str, Place],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if name == FORKED:
        request.getfixturevalue("warm_processes")
    if name in AS_PROCESS:
        outcome = observe(name, places[name], partial(run_command, places[name]))
    else:
        monkeypatch.chdir(places[name].folder)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        outcome = observe(name, places[name], lambda arguments: (main(arguments), capsys.readouterr().err))
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error: ")
    assert CASES[name][1] in lines[0]
    assert outcome.code == 2
    assert outcome.before == outcome.after
    assert not outcome.new_files


def test_there_are_enough_kinds() -> None:
    assert len(CASES) >= 25
    assert set(CASES) > AS_PROCESS
    assert all(says for _, says in CASES.values())


def test_an_unexpected_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: str | None = None) -> None:
        """Break.

        Args:
            data: a folder
        """
        raise ZeroDivisionError

    monkeypatch.setitem(COMMANDS, "check", broken)
    with pytest.raises(ZeroDivisionError):
        main(["check"])
