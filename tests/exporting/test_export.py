"""Exporting a run: files that say what they are, detect as the run does, and refuse in one line."""

import json
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import msefpn
from msefpn.checkpoint import KEY, read_info
from msefpn.cli import main
from msefpn.data.images import read_image
from msefpn.errors import UserError
from msefpn.exporting.export import ExportReport
from msefpn.exporting.parity import compare
from msefpn.inference.detect import Predictions
from msefpn.inference.exported import load_exported
from msefpn.inference.formats import EXPORTERS
from msefpn.inference.formats.base import Exporter, describe
from msefpn.models import Detector, graph, load, save
from msefpn.runs.folder import DataFiles, write_run
from msefpn.structures import Detections
from tests import ROOT
from tests.models.test_graph import TWO_LEVELS, UNSEEN, batch, make


def copied(model: Any) -> Any:
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def assert_alike(found: Detections, expected: Detections, atol: float = 1e-4) -> None:
    """The same scores, and boxes but for those that float32 cannot put in order."""
    count = int(expected.valid.sum(dim=1).min())
    assert count >= 5
    torch.testing.assert_close(found.scores[:, :count], expected.scores[:, :count], atol=atol, rtol=0)
    same = (found.boxes - expected.boxes).abs()[:, :count].amax(dim=2) < 100 * atol
    assert same.float().mean() > 0.8


def make_run(folder: Path, data: Path) -> Path:
    """A run of a small detector that detects, with random weights; its classes are the data's."""
    heads: dict[str, Any] = {"rpn": {"proposals": (50, 50)}, "roi": {"hidden": 256}}
    detector = make("faster_rcnn", "mse_fpn", levels=TWO_LEVELS, **heads)
    detector.config = replace(detector.config, size="192", batch=2)
    for file in data.glob("*.json"):  # of as many classes as the detector has
        content = json.loads(file.read_text())
        content["categories"] = content["categories"][: len(detector.classes)]
        known = {item["id"]: item["name"] for item in content["categories"]}
        content["annotations"] = [x for x in content["annotations"] if x["category_id"] in known]
        file.write_text(json.dumps(content))
        detector.classes = tuple(known.values())
    folder.mkdir()
    save(detector, folder / "best.safetensors")
    write_run(
        folder,
        detector.config,
        DataFiles(data / "train.json", data / "train", data / "val.json", data / "val"),
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(tiny_set, folder / "set")
    return make_run(folder / "run", folder / "set")


@pytest.fixture(scope="module")
def report(run: Path) -> ExportReport:
    return msefpn.export(run, compare=3)


@pytest.fixture(scope="module")
def onnx_file(report: ExportReport) -> Path:
    return report.file


@pytest.fixture(scope="module")
def model(onnx_file: Path) -> Any:
    """The graph, to make other files of without tracing it again."""
    onnx = pytest.importorskip("onnx")
    return onnx.load(onnx_file)


@pytest.fixture
def traced(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph instead of tracing it again."""
    monkeypatch.setattr(graph, "trace_onnx", lambda detector: copied(model))


def write(kind: str, detector: Detector, file: Path, precision: str = "fp32") -> None:
    exporter: Exporter = EXPORTERS[kind]
    info = describe(detector, "192", precision, exporter.packages)
    exporter.write(detector, info, file, precision, [])


def test_file_is_whole_and_says_what_it_is(run: Path, report: ExportReport, model: Any) -> None:
    assert report.passed
    assert report.exit_code == 0
    assert report.parity is not None
    assert report.parity.matched > 0.99
    content = json.loads((run / "detector.onnx.parity.json").read_text())
    assert content == report.to_json()
    assert content["largest_score_difference"] < 1e-4
    assert content["passed"]
    assert content["file"] == report.file.name == "detector.onnx"
    assert content["bytes"] == report.bytes == report.file.stat().st_size
    assert sorted(x.name for x in run.iterdir() if "detector" in x.name) == [
        "detector.onnx",
        "detector.onnx.parity.json",
    ]
    exported = load_exported(run / "detector.onnx")
    assert (exported.config, exported.classes, exported.category_ids) == read_info(run)
    assert (exported.learns_masks, exported.takes_proposals) == (False, False)
    about = json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))
    assert about["size"] == [192, 192]
    assert about["mean"] == load(run).mean.flatten().tolist()
    assert {"msefpn", "torch", "onnx"} <= set(about["made_with"])
    assert str(ROOT).encode() not in (run / "detector.onnx").read_bytes()


@pytest.mark.parametrize("size", UNSEEN)
def test_onnx_is_eager_at_sizes_and_batches_that_were_not_traced(
    run: Path, onnx_file: Path, size: tuple[int, int, int, int, int]
) -> None:
    given = batch("faster_rcnn", *size)
    with torch.no_grad():
        assert_alike(load_exported(onnx_file)(*given), load(run)(*given))


def test_smaller_images_than_the_graph_takes_are_padded(onnx_file: Path) -> None:
    found = load_exported(onnx_file)(*batch("faster_rcnn", 2, 64, 96, 60, 91))
    assert found.valid.any()
    assert (found.boxes <= torch.tensor([91, 60, 91, 60])).all()


def test_openvino_is_eager_and_its_fp16_smaller(traced: None, run: Path, tmp_path: Path) -> None:
    detector, path, half = load(run), tmp_path / "x.xml", tmp_path / "half.xml"
    for precision, file in (("fp32", path), ("fp16", half)):
        write("openvino", detector, file, precision)
    exported = load_exported(path)
    assert (exported.config, exported.classes, exported.category_ids) == read_info(run)
    assert (exported.learns_masks, exported.takes_proposals) == (False, False)
    for size in UNSEEN:
        given = batch("faster_rcnn", *size)
        with torch.no_grad():
            assert_alike(exported(*given), detector(*given))
    sizes = [file.with_suffix(".bin").stat().st_size for file in (path, half)]
    assert sizes[1] < 0.65 * sizes[0]
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"x\.bin"):
        load_exported(path)


def test_fp16_and_int8_are_smaller_and_int8_is_calibrated(
    traced: None, run: Path, onnx_file: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in (run.parent / "set" / "train").iterdir():
        (photos / photo.name).symlink_to(photo)
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in (run.parent / "set").iterdir():
        (linked / part.name).symlink_to(part)
    calibrated: dict[str, Any] = {"calibrate": photos, "samples": 3}
    for given in (calibrated, {"data": linked}):
        with pytest.raises(UserError, match="give --follow-links"):
            msefpn.export(run, precision="int8", out=tmp_path / "x.onnx", **given)
    made = {}
    for precision in ("fp16", "int8"):
        more = {"data": linked, "follow_links": True} | (calibrated if precision == "int8" else {})
        out = tmp_path / f"{precision}.onnx"
        report = msefpn.export(run, precision=precision, out=out, compare=2, matched=0, ap_drop=100, **more)
        assert report.parity is not None
        assert report.parity.matched > 0.5
        made[precision] = out.stat().st_size
    whole = onnx_file.stat().st_size
    assert made["fp16"] < 0.65 * whole
    assert made["int8"] < 0.5 * whole


def test_pt2_is_eager(tmp_path: Path) -> None:
    detector = make("yolov3", "fpn")  # the smallest graph: this one is traced anew
    with torch.no_grad():
        expected = [detector(*batch("yolov3", *size)) for size in UNSEEN]
    file = tmp_path / "x.pt2"
    write("pt2", detector, file, "fp16")
    with pytest.raises(UserError, match="can execute anything when torch opens it: add --trust"):
        load_exported(file)
    exported = load_exported(file, trust=True)
    assert (exported.learns_masks, exported.takes_proposals) == (False, False)
    assert exported.classes == detector.classes
    for size, wanted in zip(UNSEEN, expected, strict=True):
        found, count = exported(*batch("yolov3", *size)), int(wanted.valid.sum(dim=1).min())
        assert count >= 5
        torch.testing.assert_close(found.scores[:, :count], wanted.scores[:, :count], atol=5e-3, rtol=0)
    with zipfile.ZipFile(file) as archive:
        assert not any(str(ROOT).encode() in archive.read(name) for name in archive.namelist())


def test_over_the_limit_the_file_is_named_failing_and_the_command_says_1(
    traced: None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.onnx"
    assert main(["export", str(run), "--out", str(out), "--compare", "2", "--matched", "1.1"]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert sorted(x.name for x in tmp_path.iterdir()) == ["x.failed.onnx", "x.failed.onnx.parity.json"]


def test_predict_and_evaluate_take_the_file(
    run: Path, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = run.parent / "set" / "val"
    by_file = msefpn.predict(onnx_file, photos, out=tmp_path / "file", score=0.1)
    by_run = msefpn.predict(run, photos, out=tmp_path / "run", score=0.1)
    found, expected = (
        {(item["category"], *item["bbox"]): item["score"] for item in objects}
        for objects in (by_file, by_run)
    )
    both = found.keys() & expected.keys()
    assert len(both) > 0.8 * max(len(found), len(expected)) > 0
    assert [found[key] for key in both] == pytest.approx([expected[key] for key in both], abs=1e-4)
    numbers = [
        msefpn.evaluate(x, out=tmp_path / name, workers=0)["AP"] for x, name in ((run, "a"), (onnx_file, "b"))
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    with pytest.raises(UserError, match="an exported file, whose graph ends in NMS: leave out --flip"):
        msefpn.evaluate(onnx_file, out=tmp_path / "c", workers=0, flip=True)
    assert not (tmp_path / "c").exists()


def test_a_loaded_file_takes_images_from_memory(run: Path, onnx_file: Path, tiny_set: Path) -> None:
    images = [read_image(tiny_set / "val" / f"00000{number}.jpg") for number in (1, 2)]
    loaded = msefpn.load(onnx_file)
    found = loaded.predict(images, score=0.2, batch=2)
    expected = msefpn.load(run, device="cpu").predict(images, score=0.2, batch=2)
    for one, other in zip(found, expected, strict=True):
        assert len(one.predictions.scores) == len(other.predictions.scores) > 3
        np.testing.assert_allclose(one.predictions.scores, other.predictions.scores, atol=1e-3)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: loaded.predict(image, score=0.2), [images[0]] * 6))
    for result in together:
        np.testing.assert_array_equal(result.predictions.boxes, together[0].predictions.boxes)
    for limit in ({"iou": 0.3}, {"max_per_image": 3}):
        with pytest.raises(UserError, match=f"{next(iter(limit))} cannot be changed in .*keep their own"):
            loaded.predict(images[0], **limit)


def test_standalone_script_agrees_without_torch_and_msefpn(
    run: Path, onnx_file: Path, tmp_path: Path
) -> None:
    photo = min((run.parent / "set" / "val").iterdir())
    script = ROOT / "examples" / "onnx_detect.py"
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'msefpn'])); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    words = [str(script), str(onnx_file), str(photo), "--out", str(tmp_path / "found.png"), "--score", "0.2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = msefpn.predict(run, photo, out=tmp_path / "ours", score=0.0)
    assert found
    for item in found:  # Pillow and torchvision round a resized pixel differently
        left, top, right, bottom = item["box"]
        near = [
            other
            for other in expected
            if other["category"] == item["class"]
            and other["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=2)
        ]
        assert any(other["score"] == pytest.approx(item["score"], abs=0.05) for other in near)
    before, after = (np.asarray(Image.open(x).convert("RGB")) for x in (photo, tmp_path / "found.png"))
    assert before.shape == after.shape
    assert (before != after).any()


def test_broken_foreign_and_newer_files_are_refused_in_a_line(
    model: Any, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    foreign = copied(model)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for name, version in (("newer", 99), ("older", 1)):
        other = copied(model)
        entry = next(entry for entry in other.metadata_props if entry.key == KEY)
        entry.value = json.dumps(json.loads(entry.value) | {"version": version})
        onnx.save(other, tmp_path / f"{name}.onnx")
    (tmp_path / "cut.onnx").write_bytes(onnx_file.read_bytes()[:2000])
    for suffix in ("onnx", "xml", "pt2"):
        (tmp_path / f"noise.{suffix}").write_bytes(b"\x07 this is none")
    for name, words in {
        "foreign.onnx": "not written by msefpn export",
        "newer.onnx": "newer version",
        "older.onnx": "export it again with this version",
        "cut.onnx": "broken",
        "noise.onnx": "broken",
        "noise.xml": "broken",
        "noise.pt2": "add --trust",
        "none.onnx": "no weights",
    }.items():
        assert main(["predict", str(tmp_path / name), str(ROOT / "docs" / "images")]) == 2
        line = capsys.readouterr().err
        assert words in line
        assert name in line
        assert line.count("\n") == 1
    with pytest.raises(UserError, match="exported file"):
        load(onnx_file)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "unknown format 'tflite'"),
        (["--precision", "int4"], "unknown precision 'int4'"),
        (
            ["--format", "pt2", "--precision", "int8"],
            "pt2 has no int8: use --format onnx or openvino, or --precision fp32 or fp16",
        ),
        (["--out", "x.xml"], "must end in .onnx"),
        (["--out", "RUN/best.safetensors/x.onnx"], "is a file"),
        (["--calibrate", "photos"], "not calibrated"),
        (["--data", "nowhere"], "nowhere"),
        (["--compare", "-1"], "compare is -1"),
        (["--precision", "int8", "--calibrate", "nowhere"], "no image found"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    run: Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.iterdir())
    words = [word.replace("RUN", str(run)) for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / ("x.pt2" if "pt2" in words else "x.onnx"))]
    assert main(["export", str(run), *words, *out]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert sorted(run.iterdir()) == before


def test_deformable_convolutions_are_refused_for_openvino(tmp_path: Path) -> None:
    detector = make("retinanet", "fpn")
    detector.config = replace(detector.config, neck="ac_fpn", neck_options={"deformable": True})
    save(detector, tmp_path / "best.safetensors")
    with pytest.raises(UserError, match="deformable convolutions, which OpenVINO lacks"):
        msefpn.export(tmp_path, format="openvino", compare=0)


def test_missing_extra_and_a_file_that_is_there_are_named(
    run: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="is there already"):
        msefpn.export(run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "msefpn\[export\]"'):
        msefpn.export(run, out=run / "other.onnx")


def found(image: int, boxes: list[list[float]], scores: list[float], labels: list[int]) -> Predictions:
    ids = np.full(len(boxes), image)
    return Predictions(ids, np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))


def test_compare_pairs_by_class_and_overlap_and_counts_both_sides() -> None:
    box, other = [0.0, 0, 100, 100], [200.0, 0, 260, 60]
    before = found(1, [box, other], [0.9, 0.05], [0, 1])
    same = compare(before, found(1, [[0, 0, 100, 99], other], [0.8, 0.05], [0, 1]), 0.95)
    assert (same.objects, same.matched) == (2, 1)
    assert [same.score, same.box] == pytest.approx([0.1, 1])
    assert compare(before, found(1, [box, other], [0.9, 0.05], [1, 1]), 0.95).matched == 0
    assert compare(before, found(2, [box], [0.9], [0]), 0.95).matched == 0
    assert compare(before, found(1, [box, box], [0.9, 0.9], [0, 0]), 0.95).matched == pytest.approx(2 / 3)
    assert compare(before, found(1, [box], [0.9], [0]), 0.95).matched == 1  # 0.05 is below the floor
