"""The report of runs: its numbers are COCO's, it says what is missing, foreign text is escaped."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import msefpn
from msefpn.config import load_recipe
from msefpn.data.coco import truth_of
from msefpn.data.reader import read_coco
from msefpn.errors import UserError
from msefpn.metrics.coco import evaluate_coco
from msefpn.metrics.curves import mean_precision
from msefpn.reporting import report as engine
from msefpn.reporting.images import IMAGE_BYTES, PAGE_IMAGES, ImageGroup
from msefpn.reporting.run import ReportedRun
from msefpn.runs.folder import DataFiles, write_run
from tests import TINY

EVIL = "<script>alert(1)</script>"


def make_run(folder: Path, data: Path, *, shift: float = 3.0, **options: Any) -> Path:
    """A run folder as training leaves it, but for the weights; its detections are the truth, moved."""
    folder.mkdir(parents=True)
    sources = DataFiles(data / "train.json", data / "train", data / "val.json", data / "val")
    write_run(folder, load_recipe(str(TINY), **options), sources)
    truth = truth_of(read_coco(sources.val_json, sources.val_images)[0])
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": (np.array(item["bbox"]) + rng.normal(0, shift, 4)).clip(0).tolist(),
            "score": float(rng.random()),
        }
        for item in truth["annotations"]
    ]
    best = {"epoch": 1, "step": 6} | evaluate_coco(truth, results).to_json()
    (folder / "predictions.json").write_text(json.dumps(results))
    (folder / "metrics.json").write_text(json.dumps({"best": best, "last": best}))
    row = {"epoch": 1, "step": 6, "lr": 0.1, "loss": 2.5, "rpn_box": 1, "images_per_second": 9, "AP": 0.5}
    (folder / "metrics.csv").write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """Two runs on the same data: `a` and the worse `b`."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", tiny_set)
    make_run(folder / "b", tiny_set, shift=6.0, neck="fpn")
    return folder


class Reader(HTMLParser):
    """Reads a page: its words, and its elements by name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def shown(
    *runs: Path, monkeypatch: pytest.MonkeyPatch, out: Path
) -> tuple[list[ReportedRun], list[ImageGroup] | None]:
    """What the page is made from."""
    kept: list[tuple[list[ReportedRun], list[ImageGroup] | None]] = []

    def keep(reported: list[ReportedRun], groups: list[ImageGroup] | None) -> str:
        kept.append((reported, groups))
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(engine, "report_page", keep)
        engine.write_report(runs, out)
    return kept[0]


def test_page_of_a_run_tells_its_numbers(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = msefpn.report(made / "a")
    assert page == made / "a" / "report.html"
    assert f"report: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    read = Reader(text)
    best = json.loads((made / "a" / "metrics.json").read_text())["best"]
    assert f"{100 * best['AP']:.1f}" in read.words
    assert all(f"{100 * value:.1f}" in read.words for value in best["per_class"].values())
    assert read.tags.count("section") == 11
    assert 5 <= read.tags.count("img") - 1 <= PAGE_IMAGES
    assert len(text) < PAGE_IMAGES * IMAGE_BYTES * 4 / 3 + 500_000
    assert "--recipe" in read.text
    assert "no best.safetensors" in read.text  # no weights, so no cost
    assert msefpn.report([made / "a"]) == page, "it may be written again"


def test_analysis_agrees_with_the_runs_own_numbers(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run,), groups = shown(made / "b", monkeypatch=monkeypatch, out=tmp_path / "page.html")
    assert run.analysis is not None
    assert mean_precision(run.analysis.precision) == pytest.approx(run.numbers["AP"], abs=1e-9)
    assert run.analysis.errors.ap50 == pytest.approx(run.numbers["AP50"], abs=1e-9)
    assert sum(run.analysis.objects) == run.analysis.matrix[:-1].sum()
    assert sum(one.objects for one in run.analysis.sizes) == sum(run.analysis.objects)
    assert groups is not None
    assert [group.title for group in groups][:2] == ["The best", "The worst"]
    files = [row.file for group in groups for row in group.rows]
    assert len(files) == len(set(files))
    assert run.name == "b"


def test_two_runs_stand_side_by_side(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.html"
    read = Reader(msefpn.report([made / "a", made / "b"], out=out).read_text(encoding="utf-8"))
    first, second = (json.loads((made / name / "metrics.json").read_text())["best"] for name in "ab")
    assert f"{100 * (second['AP'] - first['AP']):+.1f}" in read.words
    assert "neck" in read.words
    assert "Different validation data" not in read.text
    _, groups = shown(made / "a", made / "b", monkeypatch=monkeypatch, out=tmp_path / "other.html")
    assert groups
    rows = [row for group in groups for row in group.rows]
    assert all([image.run for image in row.images] == ["a", "b"] for row in rows)
    monkeypatch.chdir(tmp_path)
    assert msefpn.report([made / "a", made / "b"]) == Path("report-1.html")


def test_runs_on_other_data_are_not_compared(made: Path, tiny_set: Path, tmp_path: Path) -> None:
    other = tmp_path / "set"
    shutil.copytree(tiny_set, other)
    content = json.loads((other / "val.json").read_text())
    content["annotations"] = content["annotations"][1:]
    (other / "val.json").write_text(json.dumps(content))
    run = make_run(tmp_path / "c", other, shift=9.0)
    read = Reader(msefpn.report([made / "a", run], out=tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Different validation data" in read.text
    first, second = (json.loads((one / "metrics.json").read_text())["best"] for one in (made / "a", run))
    assert f"{100 * second['AP']:.1f}" in read.words
    assert f"{100 * (second['AP'] - first['AP']):+.1f}" not in read.words
    assert "Where the runs differ most" not in read.text


def test_names_that_are_html_stay_text(tiny_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(tiny_set, data)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        content["categories"][0]["name"] = EVIL
        image = content["images"][0]
        named = "<b>&.jpg"
        (data / split / image["file_name"]).rename(data / split / named)
        image["file_name"] = named
        (data / f"{split}.json").write_text(json.dumps(content))
    run = make_run(tmp_path / "<i>run", data)
    read = Reader(msefpn.report(run).read_text(encoding="utf-8"))
    assert read.tags.count("script") == 1
    assert EVIL in read.words
    assert "<b>&.jpg" in read.words
    assert "<i>run" in read.words


MISSING = {
    "predictions.json": "there is no",
    "metrics.csv": "values of the training: there is no",
    "metrics.json": "there is no",
    "log.jsonl": "values of each step: there is no",
    "val": "does not exist",
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_said(name: str, tiny_set: Path, tmp_path: Path) -> None:
    data = tmp_path / "set"
    shutil.copytree(tiny_set, data)
    run = make_run(tmp_path / "run", data)
    gone = data / "val" if name == "val" else run / name
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink(missing_ok=True)
    read = Reader(msefpn.report(run).read_text(encoding="utf-8"))
    assert MISSING[name] in read.text
    assert name in read.text
    assert read.tags.count("section") == 11


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("predictions.json", "[{"),
        ("predictions.json", '[{"image_id": 1}]'),
        ("metrics.json", "{}"),
        ("metrics.json", "[1"),
        ("metrics.csv", "epoch,step,lr\n1,x,3\n"),
        ("metrics.csv", ""),
    ],
)
def test_damaged_files_cost_their_part_only(file: str, text: str, tiny_set: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tiny_set)
    (run / file).write_text(text)
    assert Reader(msefpn.report(run).read_text(encoding="utf-8")).tags.count("section") == 11


def test_mistakes_are_told(made: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.html"
    there.write_text("mine")
    for runs, out, message in [
        ([tmp_path / "none"], None, "run folder"),
        ([made / "a"], there, "already exists"),
        ([made / "a"], tmp_path / "no" / "page.html", "no' does not exist: create it"),
        ([made / "a", made / "a"], None, "given twice"),
        ([made / "a"] * 7, None, "at most 6"),
        ([], None, "no run is given"),
    ]:
        with pytest.raises(UserError, match=message):
            msefpn.report(runs, out=out)
    assert there.read_text() == "mine"


def test_training_leaves_a_page_and_is_not_failed_by_one(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = msefpn.train(tiny_set, recipe=TINY, steps=1, out=tmp_path / "run")
    read = Reader((run / "report.html").read_text(encoding="utf-8"))
    assert "parameters" in read.words
    assert "GMAC" in read.words
    assert "Learning rate" in read.words
    assert not any(word.startswith(f"{run.name}: ") for word in read.words), "nothing is missing"

    def broken(*_: Any) -> str:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(engine, "report_page", broken)
    engine.report_training(run)
    assert f"no report of this run: two lines; try msefpn report {run}\n" in capsys.readouterr().out
