"""Grids: paired, resumable, and not stopped by a trial that fails."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import msefpn
from msefpn.ablation import grid
from msefpn.ablation.grid import environment
from msefpn.ablation.rows import row_configs
from msefpn.cli import main
from msefpn.config import load_recipe, published, recipe_names
from msefpn.data.locate import find_split
from msefpn.errors import UserError
from msefpn.runs.folder import DataFiles
from tests import TINY
from tests.processes import NURSERY

BUDGET: dict[str, Any] = {"recipe": TINY, "seeds": 2, "epochs": 1, "workers": 0, "rounds": 1}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, warm_processes: None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def weights_of(out: Path) -> dict[Path, float]:
    """Return when each training of a grid wrote its weights."""
    return {path: path.stat().st_mtime for path in out.rglob("last.safetensors")}


def test_grid(tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, explodes = tmp_path / "grid", tmp_path / "explodes.yaml"
    explodes.write_text("lr: 1.0e+30\ngrad_clip: 0.0\nwarmup: 0\n")
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in tiny_set.iterdir():
        (linked / part.name).symlink_to(part)
    common = ["--data", str(linked), "--recipe", str(TINY), "--epochs", "1", "--workers", "0"]
    common += ["--rounds", "1", "--out", str(out)]
    assert main(["ablate", "fpn", *common]) == 2
    assert "where you trust the data, give --follow-links" in capsys.readouterr().err
    common.append("--follow-links")
    assert main(["ablate", "fpn", str(explodes), *common, "--seeds", "1", "--jobs", "2"]) == 1
    told = capsys.readouterr().out
    assert "2 trainings, 0 of them finished before, 2 at a time" in told
    assert "2/2" in told
    assert "left 0:00" in told
    assert "failed: explodes, 1 epochs, seed 0: " in told
    results = json.loads((out / "results.json").read_text())["rows"]
    fpn, failed = results
    assert [row["row"] for row in results] == ["fpn", "explodes"]
    assert all("not finite" in trial["failed"] for trial in failed["trials"])
    assert "mean" not in failed
    assert "difference" not in failed

    before = weights_of(out)
    (done,) = before
    begun = done.parent.with_name("seed-1")  # as if killed before its first epoch was committed
    uncommitted = shutil.ignore_patterns("resume.ckpt", "metrics.json", "data.yaml")
    shutil.copytree(done.parent, begun, ignore=uncommitted)
    begun_at = weights_of(out)[begun / done.name]
    assert main(["ablate", "fpn", "ablation_gcg", *common, "--seeds", "2"]) == 0
    assert "4 trainings, 1 of them finished before, 1 at a time" in capsys.readouterr().out
    after = weights_of(out)
    assert len(after) == 4
    assert {path: after[path] for path in before} == before
    assert after[begun / done.name] > begun_at
    fpn, gcg = json.loads((out / "results.json").read_text())["rows"]
    aps = [[trial["AP"] for trial in row["trials"]] for row in (fpn, gcg)]
    for row, own in zip((fpn, gcg), aps, strict=True):
        assert row["mean"] == pytest.approx(sum(own) / 2)
    steps = [b - a for a, b in zip(*aps, strict=True)]
    assert gcg["difference"]["mean"] == pytest.approx(sum(steps) / 2)
    assert gcg["difference"]["high"] - gcg["difference"]["mean"] == pytest.approx(
        12.7062 * abs(steps[0] - steps[1]) / 2, abs=1e-4
    )
    assert gcg["published"]["gain"] == 0.012
    assert (fpn["baseline"], gcg["baseline"]) == (True, False)
    assert fpn["command"].endswith(" --follow-links")
    assert gcg["parameters"] - fpn["parameters"] == 4 * 2 * (32 * 32 + 32)

    with pytest.raises(UserError, match=r"was trained with size 96, not 64"):
        msefpn.ablate(["fpn"], data=linked, follow_links=True, out=out, **BUDGET, size=64)


def test_a_killed_grid_goes_on_where_it_was(tiny_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    options = ["--data", tiny_set, "--recipe", TINY, "--seeds", "1", "--epochs", "4", "--workers", "0"]
    arguments = [*map(str, ("ablate", "fpn", *options, "--rounds", "1", "--out", out))]
    process = subprocess.Popen([sys.executable, "-m", "msefpn", *arguments], stdout=subprocess.DEVNULL)
    state = out / "fpn/epochs-4/seed-0/resume.ckpt"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (cell,) = (child for child in children if Path(f"/proc/{child}/comm").read_bytes().strip() != NURSERY)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{cell}").exists() and "zombie" not in Path(f"/proc/{cell}/status").read_text():
        assert time.monotonic() < deadline, "the training outlived its grid"
        time.sleep(0.1)
    assert not (state.parent / "metrics.json").read_text().count('"epoch": 4')
    assert main(arguments) == 0
    log = (out / "fpn/epochs-4/seed-0.log").read_text()
    assert "resumed after epoch" in log
    assert log.count("epoch 1/4") == 1
    (row,) = json.loads((out / "results.json").read_text())["rows"]
    alone = msefpn.train(tiny_set, recipe=TINY, neck="fpn", epochs=4, workers=0, out=tmp_path / "alone")
    assert row["trials"][0]["AP"] == json.loads((alone / "metrics.json").read_text())["last"]["AP"]


def test_ctrl_c_stops_the_trainings(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    started: list[Any] = []
    start = subprocess.Popen

    def remembered(*arguments: Any, **more: Any) -> Any:
        started.append(start(*arguments, **more))
        return started[-1]

    monkeypatch.setattr(time, "sleep", interrupted)
    monkeypatch.setattr(subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt, match="the same command continues the grid"):
        msefpn.ablate(["fpn"], data=tiny_set, out=tmp_path / "grid", jobs=2, **BUDGET)
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


def test_one_grid_at_a_time(tiny_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid"
    sources = DataFiles(*find_split(tiny_set, "train"), *find_split(tiny_set, "val"))
    with (
        grid.grid_folder(out, sources),
        pytest.raises(UserError, match="another msefpn ablate is working there"),
    ):
        msefpn.ablate(["fpn"], data=tiny_set, out=out, **BUDGET)
    with grid.grid_folder(out, sources):
        pass
    other = dataclasses.replace(sources, val_json=sources.train_json)
    with pytest.raises(UserError, match="annotations have changed"), grid.grid_folder(out, other):
        pass


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        (["fpm"], {}, "unknown neck or recipe 'fpm': did you mean 'fpn'"),
        (["bfp"], {}, "write fpn\\+bfp"),
        (["fpn", "ROWS/fpn.yaml"], {}, "row 'fpn' is there twice"),
        (["fpn", "ROWS/gate.yaml"], {}, "gate 'cgc' is unknown: known: gcg, cag"),
        (["fpn", "ROWS/soft.yaml"], {}, "unknown key in detector_options"),
        (["fpn", "ROWS/split.yaml"], {}, "preset 'split' needs sem_strides"),
        (["fpn"], {"epochs": [2, 2]}, "epochs '2' is there twice"),
        (["fpn", "ROWS/two.yaml"], {"jobs": 2}, "row 'two' takes 2 devices itself"),
        ([], {}, "rows is empty"),
        (["fpn"], {"seeds": 0}, "seeds is 0"),
        (["fpn"], {"jobs": 0}, "jobs is 0"),
        (["fpn"], {"epochs": 0}, "epochs is 0"),
        (["fpn"], {"set": ["neck=pafpn"]}, "neck pafpn for all rows, and row 'fpn' is a neck"),
        (["fpn"], {"set": ["seed=3"]}, "seed 3 for all trainings: leave it out"),
        (["fpn"], {"init": "none", "recipe": "light"}, "would leave .* fixed tensors"),
    ],
)
def test_mistakes_before_anything_is_trained(
    rows: list[str], options: dict[str, Any], reason: str, tiny_set: Path, tmp_path: Path
) -> None:
    texts = {
        "fpn": "neck: fpn",
        "two": "devices: 2",
        "gate": "neck: mse_fpn\nneck_options: {gate: cgc}",
        "soft": "detector: retinanet\ndetector_options: {roi: {pooling: soft}}",
        "split": "neck: mse_fpn\nneck_options: {preset: split, sem_strides: [8, 16]}",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    named = [row.replace("ROWS", str(tmp_path)) for row in rows]
    with pytest.raises(UserError, match=reason):
        msefpn.ablate(named, data=tiny_set, out=tmp_path / "grid", **BUDGET | options)
    assert not (tmp_path / "grid").exists()


def test_a_folder_of_something_else_is_left_alone(tiny_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not empty"):
        msefpn.ablate(["fpn"], data=tiny_set, out=tiny_set, **BUDGET)


def test_trials_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert environment(0, 1, 4) == dict(os.environ)
    shares = [environment(slot, 4, 2) for slot in range(4)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0", "1"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    shares = [environment(slot, 3, 2) for slot in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5", "2"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"3"}


def test_row_configs_the_paper_are_put_over_any_recipe() -> None:
    light = load_recipe("light")
    found = row_configs(["fpn", "ablation_cag"], "light", "quickstart")
    assert found["fpn"] == load_recipe("light", neck="fpn")
    assert found["ablation_cag"].neck_options == {**light.neck_options, "sem": "none", "gate": "cag"}
    assert found["ablation_cag"].backbone == light.backbone
    for name in recipe_names():
        if published(name) is not None:  # a row of the paper
            (row,) = row_configs([name], "light", "quickstart").values()
            assert (row.neck, row.detector) == (load_recipe(name).neck, load_recipe(name).detector)
    (baseline,) = row_configs(["faster_rcnn_r50_fpn_1x"], "light", "quickstart").values()
    assert baseline == load_recipe("light", neck="fpn")
    alone = row_configs(["fpn", "ablation_cag"], None, "quickstart")
    assert (alone["fpn"].backbone, alone["ablation_cag"].backbone) == ("test_resnet", "resnet50.tv_in1k")
