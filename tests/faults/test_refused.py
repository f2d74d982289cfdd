"""What a run is not resumed from, or beside: one line, before anything is written."""

import dataclasses
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from msefpn.checkpoint import find_weights
from msefpn.cli import main
from msefpn.errors import UserError
from msefpn.models import build
from msefpn.runs.folder import TRAINING, read_run
from msefpn.training.data import read_data
from msefpn.training.fingerprint import DataMarks
from msefpn.training.plan import plan_training
from msefpn.training.resume import state_to_resume
from msefpn.writing import JOURNAL, LOCK, part_of, settle, working_in
from tests.data.sets import BOXES_ALONE
from tests.faults import runs
from tests.faults.conftest import Unbroken
from tests.faults.disk import copy_run

State = dict[str, Any]


def refusal(out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line with which `--resume` is refused; the folder is as it was."""
    before = runs.content(out)
    capsys.readouterr()
    assert main([*runs.resuming(out), *more]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1, lines
    assert runs.content(out) == before
    return lines[0]


def edit_state(out: Path, change: Callable[[State], Any]) -> None:
    state = torch.load(out / "resume.ckpt", weights_only=True)
    change(state)
    (out / "resume.ckpt").unlink()  # it may be a link to another test's
    torch.save(state, out / "resume.ckpt")


def in_int8(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name, value in tensors.items() if value.dim() > 1)
    tensors[name] = tensors[name].to(torch.int8)


def endless() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = []
    found.append(found)
    return found


def first(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return next(value for value in tensors.values() if value.dim() > 1)


def position(**values: Any) -> dict[str, Any]:
    """What a state says of the midst of an epoch."""
    whole = {"batches": 1, "of": 2, "images": 2, "seconds": 1.0, "sums": {"loss": 1.0}, "statistics": []}
    return whole | values


EDITS: dict[str, tuple[Callable[[State], Any], str]] = {
    "no step": (lambda state: state.pop("step"), "is not the state of a run of this version"),
    "epoch as text": (lambda state: state.update(epoch="1"), "epoch is not of type int"),
    "epoch after step": (lambda state: state.update(epoch=9), "epoch 9 and step 1 do not go together"),
    "epoch true": (lambda state: state.update(epoch=True), "epoch is not of type int"),
    "best without AP": (lambda state: state["best"].pop("AP"), "best has no AP"),
    "best elsewhere": (lambda state: state["best"].update(AP=0.9), "has another best epoch than"),
    "best later": (lambda state: state["best"].update(epoch=2), "best names no epoch"),
    "classes": (lambda state: state["classes"].append("new"), "classes and category_ids do not go together"),
    "weight missing": (lambda state: state["detector"].popitem(), "does not fit the detector"),
    "weight not finite": (lambda state: first(state["detector"]).fill_(float("nan")), "not finite"),
    "weight repeated": (
        lambda state: state["detector"].update(x=torch.zeros(1).expand(1 << 40)),
        "not a plain",
    ),
    "weight sparse": (lambda state: state["detector"].update(x=torch.eye(3).to_sparse()), "x is not a plain"),
    "weight nowhere": (lambda state: state["detector"].update(x=torch.ones(3, device="meta")), "not a plain"),
    "weight in int8": (lambda state: in_int8(state["detector"]), "does not fit the detector"),
    "average in int8": (lambda state: in_int8(state["ema"]), "does not fit the detector"),
    "weight a number": (lambda state: state["detector"].update(more=1), "detector has no tensor more"),
    "averages missing": (lambda state: state.update(ema=None), "does not fit the detector"),
    "averages a list": (lambda state: state.update(ema=[1]), "ema is not of type dict"),
    "no optimizer group": (lambda state: state["optimizer"].update(param_groups=[]), "does not fit"),
    "other momentum": (lambda state: state["optimizer"]["param_groups"][0].update(momentum=0.5), "not fit"),
    "short momentum": (
        lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3)),
        "does not fit",
    ),
    "momentum in int8": (lambda state: in_int8(state["optimizer"]["state"][0]), "does not fit"),
    "momentum not finite": (
        lambda state: first(state["optimizer"]["state"][0]).fill_(float("inf")),
        "optimizer.state.0.momentum_buffer has values that are not finite",
    ),
    "ids as texts": (lambda state: state["category_ids"].__setitem__(0, "1"), "ids are not whole numbers"),
    "settings a tensor": (lambda state: state["config"].update(lr=torch.ones(2)), "config has a tensor"),
    "settings a set": (lambda state: state["config"].update(lr={1}), "config.lr is a set"),
    "endless": (lambda state: state["best"].update(more=endless()), "nested too deeply"),
    "marks a list": (lambda state: state["data"].update(pictures=[1]), "pictures is not of type dict"),
    "other settings": (lambda state: state["config"].update(lr=9.0), "config.yaml' has lr 0.02, but the run"),
    "a position in pieces": (
        lambda state: state.update(within={"batches": 1}),
        "not hold the values of a pos",
    ),
    "a position beyond": (lambda state: state.update(within=position(batches=3)), "names batch 3 of 2"),
    "a position in a step": (
        lambda state: (state.update(within=position()), state["config"].update(accumulate=2)),
        "within.batches is not a multiple of 2",
    ),
    "a position with texts": (
        lambda state: state.update(within=position(sums={"a": "b"})),
        "are not numbers",
    ),
    "a position with other statistics": (
        lambda state: state.update(within=position(statistics=[[{"x": torch.ones(1)}]])),
        "does not fit the detector",
    ),
    "a scaler in a list": (lambda state: state.update(scaler=[1]), "scaler is not of type dict"),
    "no marks": (lambda state: state["data"].pop("pictures"), "has no marks of the train pictures"),
}


def test_an_edited_state_is_refused(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = copy_run(unbroken.after[0], tmp_path / "whole")
    plan = plan_training(None, {}, recipe=None, out=whole, resume=True, steps=None, options={})
    _, (train, _), (val, _) = read_data(plan, BOXES_ALONE)
    detector, marks = build(plan.config, train.classes, train.category_ids), DataMarks.of(train, val)
    assert state_to_resume(plan, detector, train, val, marks) is not None
    for name, (change, says) in EDITS.items():
        out = copy_run(unbroken.after[0], tmp_path / name)
        edit_state(out, change)
        with pytest.raises(UserError) as refused:
            state_to_resume(dataclasses.replace(plan, out=out), detector, train, val, marks)
        assert says in str(refused.value), name
    out = copy_run(unbroken.after[0], tmp_path / "cut")
    content = (out / "resume.ckpt").read_bytes()
    (out / "resume.ckpt").unlink()
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as plain,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as to,
    ):
        for part in plain.infolist():
            to.writestr(part.filename, plain.read(part))
    for damaged in (content[: len(content) // 2], b"", packed.getvalue()):
        (out / "resume.ckpt").write_bytes(damaged)
        assert "is damaged or half-written" in refusal(out, capsys)


FILES = {
    ("config.yaml", ""): "config.yaml' is None, not an object",
    ("config.yaml", "[1]"): "config.yaml' is [1], not an object",
    ("config.yaml", "lr: [0.02"): "config.yaml' is not valid YAML",
    ("data.yaml", ""): "data.yaml' is None, not an object",
    ("metrics.csv", ""): "metrics.csv' does not hold the epochs up to 1",
    ("metrics.csv", "epoch,step\n1"): "metrics.csv' is damaged",
    ("metrics.csv", "epoch,step\n1,1,1\n"): "metrics.csv' is damaged",
    ("metrics.csv", "epoch,step\none,1\n"): "metrics.csv' is damaged",
    ("metrics.csv", "\0"): "metrics.csv' does not hold the epochs",
    ("metrics.json", ""): "metrics.json' is not a complete json",
    ("metrics.json", "[]"): "metrics.json' is [], not an object",
    ("metrics.json", '{"best": {"epoch": 1}}'): "metrics.json' has no 'last'",
    ("metrics.json", "[" * 5000): "metrics.json' is nested more than 64 deep",
    ("log.jsonl", "{}\nno\n"): "log.jsonl' is damaged: line 1 is not an event",
}


FILES_OF_NUMBERS = ("metrics.csv", "metrics.json", "log.jsonl")


def test_damaged_files_are_refused(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, ((name, content), says) in enumerate(FILES.items()):
        out = copy_run(unbroken.after[0], tmp_path / str(number))
        (out / name).write_text(content)
        assert says in refusal(out, capsys), (name, content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", ["config.yaml", "data.yaml", "resume.ckpt", *FILES_OF_NUMBERS])
def test_a_pipe_in_a_files_place_is_not_waited_for(
    name: str, unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(unbroken.after[0], tmp_path / "run")
    (out / name).unlink()
    os.mkfifo(out / name)
    assert out.name in refusal(out, capsys)


def test_changed_settings_are_refused(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(unbroken.after[0], tmp_path / "run")
    text = (out / "config.yaml").read_text()
    for old, new in (
        ("seed: 0", "seed: 1"),
        ("out_channels: 8", "out_channels: 16"),
        ("neck: fpn", "neck: bfp"),
    ):
        assert old in text
        (out / "config.yaml").write_text(text.replace(old, new))
        assert new.partition(": ")[2] in refusal(out, capsys)
    (out / "config.yaml").write_text(text)
    assert "has all its 1 epochs" in refusal(out, capsys, "--epochs", "1")
    (out / "resume.ckpt").unlink()
    numbers = json.loads((out / "metrics.json").read_text())
    numbers["last"]["epoch"] = 2
    (out / "metrics.json").write_text(json.dumps(numbers))
    assert "has the numbers of epoch 2 but no resume.ckpt" in refusal(out, capsys)


@pytest.mark.parametrize("split", ["train", "val"])
def test_changed_data_is_refused(
    split: str, unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(unbroken.after[0], tmp_path / "run")
    data = shutil.copytree(unbroken.data, tmp_path / "data")
    (out / "data.yaml").write_text((out / "data.yaml").read_text().replace(str(unbroken.data), str(data)))
    file, picture = data / f"{split}.json", data / split / "000001.jpg"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    old = file.read_text()
    file.write_text(json.dumps(content))
    assert f"{file} has changed since the run '{out}' began" in refusal(out, capsys)
    file.write_text(old)
    times = picture.stat()
    Image.open(picture).rotate(180).save(picture)
    os.utime(picture, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert f"picture {picture} has changed since the run '{out}' began" in refusal(out, capsys)
    shutil.copyfile(unbroken.data / split / "000001.jpg", picture)
    os.utime(picture, (0, 0))  # a copy with another time is the same picture
    assert main(runs.resuming(out)) == 0


def test_a_folder_in_use_is_refused(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy_run(unbroken.after[0], tmp_path / "run")
    with working_in(out, TRAINING):
        said = refusal(out, capsys)
        assert f"'{out}' is in use: another msefpn train is working there" in said
        assert main([*runs.command(unbroken.data, tmp_path / "run")]) == 2
        if hasattr(os, "fork") and not (child := os.fork()):  # a process that loads images
            os._exit(0)
        os.waitpid(child, 0)
        assert "is in use" in refusal(out, capsys)
    assert not (out / LOCK).exists()
    (out / LOCK).touch()  # of a process that died
    assert main(runs.resuming(out)) == 0


def test_readers_finish_what_a_dead_writer_began(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_text("old")
    part_of(tmp_path / "best.safetensors").write_text("new")
    (tmp_path / JOURNAL).write_text('["best.safetensors", "last.safetensors"]')
    assert find_weights(tmp_path).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]
    for content in ('["../best"]', "[1]", "{}", ""):
        (tmp_path / JOURNAL).write_text(content)
        with pytest.raises(UserError, match=r"\.commit' is damaged: remove it"):
            read_run(tmp_path)
        (tmp_path / LOCK).unlink(missing_ok=True)


def test_a_reader_waits_for_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("msefpn.writing._WAIT", 0.1)
    (tmp_path / JOURNAL).write_text("[]")
    with working_in(tmp_path, "test"):
        (tmp_path / JOURNAL).write_text("[]")
        with pytest.raises(UserError, match="is being written by another process"):
            settle(tmp_path)
        (tmp_path / JOURNAL).unlink()
