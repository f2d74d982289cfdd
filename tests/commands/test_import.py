"""`msefpn import`, and checkpoints of others given to the other commands directly."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import msefpn
from msefpn import UserError
from msefpn.checkpoint import read_info
from msefpn.cli import main
from msefpn.models import Detector, init_weights, load, read_foreign, styled
from msefpn.models.importers import _convert
from msefpn.models.importers.base import coco_classes
from msefpn.models.importers.files import Checkpoint
from tests.models.importers.layouts import (
    CLASSES,
    HIDDEN,
    WIDTH,
    as_detectron2,
    as_mmdetection,
    detections,
    make,
)

TEXT = "model = dict(backbone=dict(style='pytorch'))\ntest_pipeline = [dict(type='Resize', scale=(128, 96))]"


@pytest.fixture(scope="module")
def ours() -> Detector:
    return make("faster_rcnn")


@pytest.fixture(scope="module")
def file(ours: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of mmdetection 3.x."""
    path = tmp_path_factory.mktemp("theirs") / "epoch_12.pth"
    meta = {"cfg": TEXT, "mmengine_version": "0.10.4", "dataset_meta": {"classes": CLASSES}}
    torch.save({"meta": meta, "state_dict": as_mmdetection(ours)}, path)
    return path


def test_import(
    ours: Detector,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(file), "--out", "new/model.safetensors", "--table", "keys.tsv"]) == 0
    printed = capsys.readouterr().out
    assert "is from mmdetection 3.x: faster_rcnn, resnet18, fpn, 3 classes: cat, dog, eel" in printed
    assert "style (its configuration): stride in the 3x3 convolution, RGB" in printed
    assert "tensors: " in printed
    assert "renamed" in printed
    assert "written: new/model.safetensors" in printed
    lines = (tmp_path / "keys.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(as_mmdetection(ours))
    assert "renamed\tneck.lateral_convs.0.conv.weight\tneck.laterals.0.weight\t" in lines
    theirs = load(tmp_path / "new" / "model.safetensors")
    for key, value in detections(ours).items():
        assert torch.equal(detections(theirs)[key], value), key
    info = read_info(tmp_path / "new" / "model.safetensors")
    assert (info.classes, info.config.size, info.config.init) == (CLASSES, "128x96", "epoch_12.pth")
    assert info.config.detector_options["roi"]["hidden"] == HIDDEN


def test_predict_directly(file: Path, tiny_set: Path, tmp_path: Path) -> None:
    arguments = [
        "predict",
        str(file),
        str(tiny_set / "val"),
        "--out",
        str(tmp_path / "found"),
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--score", "0.01", "--save", "json"]) == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert found
    assert {entry["category"] for entry in found} <= set(CLASSES)
    assert msefpn.load(file).classes == CLASSES


def test_initial_weights(file: Path, ours: Detector) -> None:
    model = make("faster_rcnn", neck="pafpn")
    report = init_weights(model, str(file))
    assert torch.equal(model.backbone.body.conv1.weight, ours.backbone.body.conv1.weight)
    assert "neck.laterals.3.weight" in report.loaded
    assert "roi.box.classes.weight" in report.loaded
    assert {name.split(".")[1] for name in report.missing} == {"downs", "smooths"}


def test_initial_weights_bring_their_style(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.pth"
    torch.save({"model": as_detectron2(make("faster_rcnn", backbone_options={"std": [1.0, 1.0, 1.0]}))}, file)
    config = make("faster_rcnn").config
    changed, told = styled(replace(config, init=str(file)))
    assert changed.backbone_options == {"std": [1.0, 1.0, 1.0]}
    assert told == [f"backbone options of {file}: std [1.0, 1.0, 1.0]"]
    with pytest.raises(
        UserError, match=r"need backbone_options.std=\[1.0,1.0,1.0\], but .* --set backbone_options"
    ):
        init_weights(make("faster_rcnn"), str(file))
    with pytest.raises(UserError, match=r"need backbone_options\.std"):
        styled(replace(config, init=str(file), backbone_options={"std": [2, 2, 2]}))
    arguments = [
        "train",
        "--data",
        str(tiny_set),
        "--recipe",
        "small_data",
        "--init",
        str(file),
        "--steps",
        "1",
    ]
    arguments += ["--backbone", "resnet18", "--neck", "fpn", "--set", f"neck_options.out_channels={WIDTH}"]
    arguments += ["--set", f"detector_options.roi.hidden={HIDDEN}", "--size", "64", "--batch", "2"]
    run = tmp_path / "run"
    assert main([*arguments, "--workers", "0", "--device", "cpu", "--epochs", "1", "--out", str(run)]) == 0
    assert "backbone options of" in capsys.readouterr().out
    assert load(run).backbone.std == [1.0, 1.0, 1.0]


def test_classes_of_coco(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    names = coco_classes()
    assert len(names) == 80
    assert (names["person"], names["toothbrush"]) == (1, 90)
    foreign = _convert(Checkpoint(tmp_path / "tv.pth", model.state_dict(), {}, ()), None)
    with torch.device("meta"):
        detector = foreign.detector()
    assert (detector.classes, detector.category_ids) == (tuple(names), tuple(names.values()))
    assert foreign.left == ()
    assert len(foreign.carried) == len(model.state_dict())
    assert detector.config.backbone_options == {"norm_eps": 1e-5}  # it has counters, as COCO's own do not


def saved(content: Any) -> Callable[[Path, Path], Path]:
    def make_file(folder: Path, good: Path) -> Path:
        torch.save(content, folder / "x.pth")
        return folder / "x.pth"

    return make_file


def half(folder: Path, good: Path) -> Path:
    (folder / "x.pth").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    return folder / "x.pth"


def hostile(folder: Path, good: Path) -> Path:
    (folder / "x.pkl").write_bytes(b"cos\nsystem\n(S'touch hostile'\ntR.")
    return folder / "x.pkl"


BAD: dict[str, tuple[Callable[[Path, Path], Path], list[str], str]] = {
    "missing": (lambda folder, good: folder / "none.pth", [], "none.pth does not exist"),
    "half a file": (half, [], "it is broken, half-written or not a checkpoint"),
    "hostile": (hostile, [], "names os.system, which no checkpoint needs"),
    "unknown names": (saved({"stem.weight": torch.zeros(1)}), [], "it holds tensors but no detector"),
    "another architecture": (
        saved(
            {"neck.lateral_convs.0.conv.weight": torch.zeros(8, 8, 1, 1), "panoptic_head.x": torch.zeros(1)}
        ),
        [],
        "from mmdetection, but its head is none of ours: it has panoptic_head.x",
    ),
    "wrong class count": (
        lambda folder, good: good,
        ["--classes", "a", "b"],
        "has 3 classes, but 2 were given",
    ),
    "unknown style": (lambda folder, good: good, ["--style", "cafe"], "did you mean 'caffe'"),
    "another suffix": (
        lambda folder, good: good,
        ["--out", "model.pth"],
        "must end in .safetensors, as weights do",
    ),
    "existing out": (lambda folder, good: good, ["--out", "there.safetensors"], "is there already"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(
    name: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_file, options, says = BAD[name]
    inputs, work = tmp_path / "in", tmp_path / "work"
    inputs.mkdir()
    work.mkdir()
    (work / "there.safetensors").write_text("mine")
    monkeypatch.chdir(work)
    given = make_file(inputs, file)
    assert main(["import", str(given), *options]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert [path.name for path in work.iterdir()] == ["there.safetensors"]
    assert (work / "there.safetensors").read_text() == "mine"


def test_predict_names_what_is_missing(
    tmp_path: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.device("meta"):
        state = as_mmdetection(make("faster_rcnn"))
    torch.save({name: torch.zeros(x.shape) for name, x in state.items()}, tmp_path / "a.pth")
    out = tmp_path / "found"
    assert main(["predict", str(tmp_path / "a.pth"), str(tiny_set / "val"), "--out", str(out)]) == 2
    assert "does not name its 3 classes: import it with msefpn import" in capsys.readouterr().err
    assert not out.exists()
    shutil.rmtree(tmp_path)


def test_images_are_read_as_the_style_says(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    red = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    red[:, 0] = 255
    sizes = torch.tensor([[64, 64]])
    plain = make("faster_rcnn", backbone_options={"std": [1.0, 1.0, 1.0]})
    torch.save({"model": as_detectron2(plain)}, tmp_path / "a.pth")
    theirs = read_foreign(tmp_path / "a.pth").detector(CLASSES)
    kernel = as_detectron2(plain)["backbone.bottom_up.stem.conv1.weight"]
    bgr = red.flip(1).float() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    expected = torch.nn.functional.conv2d(bgr, kernel, stride=2, padding=3)
    found = torch.nn.functional.conv2d(
        theirs.normalise(red, sizes), theirs.backbone.body.conv1.weight, stride=2, padding=3
    )
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
