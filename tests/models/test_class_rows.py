"""Class layers brought from the classes of one detector to those of another, by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msefpn.config import Config
from msefpn.models import Detector, build, init_weights, save
from msefpn.models.class_rows import SHARED, HasClassRows, move_class_rows
from msefpn.plugins import known
from tests.models.test_weights import INPUTS


def make(detector: str, *classes: str, seed: int = 0, **options: Any) -> Detector:
    """A detector whose class layers differ from row to row."""
    torch.manual_seed(seed)
    values: dict[str, Any] = {"backbone": "test_resnet", "neck_options": {"out_channels": 32}}
    found = build(Config(detector=detector, **values | options), classes)
    for head in found.modules():
        if isinstance(head, HasClassRows):
            for layer in head.class_rows(len(classes)):
                nn.init.normal_(head.get_parameter(f"{layer}.weight"), std=0.5)
                nn.init.normal_(head.get_parameter(f"{layer}.bias"), std=0.5)
    return found


def detections(detector: Detector) -> dict[str, Tensor]:
    """Class -> scores and boxes (N, 5) of all detections of an image, each column in rising order."""
    with torch.no_grad():
        found = detector.eval()(*INPUTS)
    columns = torch.cat([found.scores[0, :, None], found.boxes[0]], dim=1)
    chosen = {name: found.valid[0] & (found.labels[0] == row) for row, name in enumerate(detector.classes)}
    return {name: columns[rows].sort(dim=0).values for name, rows in chosen.items()}


@pytest.mark.parametrize("name", known("detector"))
def test_the_same_classes_in_another_order_detect_the_same(name: str, tmp_path: Path) -> None:
    options = {"roi": {"max_per_image": 20}} if name == "mask_rcnn" else {}  # masks take their time
    source = make(name, "cat", "dog", "eel", detector_options=options)
    save(source, tmp_path / "source.safetensors")
    target = make(name, "eel", "cat", "dog", seed=1, detector_options=options)
    report = init_weights(target, str(tmp_path / "source.safetensors"))
    assert not report.missing
    assert not report.left_out
    assert sorted(report.kept_classes) == ["cat", "dog", "eel"]
    assert not report.new_classes
    found, again = detections(source), detections(target)
    assert sum(map(len, found.values())) > 10
    for label, rows in found.items():
        torch.testing.assert_close(again[label], rows, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", known("detector"))
def test_every_layer_of_classes_is_known(name: str) -> None:
    """A layer whose size follows the number of classes is one that `class_rows` names."""
    two, three = make(name, "a", "b"), make(name, "a", "b", "c")
    own = three.state_dict()
    differ = {key for key, tensor in two.state_dict().items() if own[key].shape != tensor.shape}
    named = {
        f"{prefix}.{layer}.{part}"
        for prefix, head in three.named_modules()
        if isinstance(head, HasClassRows)
        for layer in head.class_rows(3)
        for part in ("weight", "bias")
    }
    assert named == differ
    for prefix, head in three.named_modules():
        if isinstance(head, HasClassRows):
            for layer, rows in head.class_rows(3).items():
                assert len(own[f"{prefix}.{layer}.bias"]) == len(rows)


def test_new_classes_keep_their_own_rows() -> None:
    source, target = make("mask_rcnn", "cat", "dog"), make("mask_rcnn", "eel", "dog", seed=1)
    before, theirs = target.state_dict(), source.state_dict()
    moved = move_class_rows(theirs, source.classes, target, target.classes)
    assert (moved.kept, moved.new, moved.dropped) == (("dog",), ("eel",), ())
    scores = moved.state["roi.box.classes.weight"]
    assert torch.equal(scores[0], before["roi.box.classes.weight"][0])
    assert torch.equal(scores[1:], theirs["roi.box.classes.weight"][1:])  # dog and background
    assert torch.equal(moved.state["roi.box.deltas.bias"][:4], before["roi.box.deltas.bias"][:4])
    assert torch.equal(moved.state["roi.box.deltas.bias"][4:], theirs["roi.box.deltas.bias"][4:])
    assert torch.equal(moved.state["mask.masks.weight"][0], before["mask.masks.weight"][0])
    assert torch.equal(moved.state["mask.masks.weight"][1], theirs["mask.masks.weight"][1])


def test_without_a_common_class_the_layers_are_new(tmp_path: Path) -> None:
    """Also where the number of classes is the same, and the rows would fit."""
    save(make("faster_rcnn", "cat", "dog"), tmp_path / "source.safetensors")
    target = make("faster_rcnn", "eel", "cow", seed=1)
    before = target.state_dict()["roi.box.classes.weight"].clone()
    report = init_weights(target, str(tmp_path / "source.safetensors"))
    assert torch.equal(target.state_dict()["roi.box.classes.weight"], before)
    assert report.new_classes == ("eel", "cow")
    assert [text.split(" ", 1) for text in report.left_out] == [
        [f"roi.box.{layer}.{part}", "(its classes are others)"]
        for layer in ("classes", "deltas")
        for part in ("bias", "weight")
    ]
    assert "new class rows for: eel, cow" in str(report)
    assert "kept" not in str(report)


def test_rows_of_no_class_are_kept_without_a_common_class() -> None:
    """YOLO's layer also holds boxes and objectness."""
    source, target = make("yolov3", "cat"), make("yolov3", "eel", "cow", seed=1)
    moved = move_class_rows(source.state_dict(), source.classes, target, target.classes)
    head = target.get_submodule("head")
    assert isinstance(head, HasClassRows)
    shared = torch.tensor([label == SHARED for label in head.class_rows(2)["convs.0.3"]])
    bias, own = moved.state["head.convs.0.3.bias"], target.state_dict()["head.convs.0.3.bias"]
    theirs = source.state_dict()["head.convs.0.3.bias"].view(3, 6)[:, :5].flatten()
    assert torch.equal(bias[shared], theirs)
    assert torch.equal(bias[~shared], own[~shared])


def test_the_report_names_the_classes(tmp_path: Path) -> None:
    save(make("fcos", "cat", "dog"), tmp_path / "source.safetensors")
    report = init_weights(make("fcos", "eel", "dog", seed=1), str(tmp_path / "source.safetensors"))
    lines = str(report).splitlines()
    assert lines[1:] == ["  class rows kept of: dog", "  new class rows for: eel"]
