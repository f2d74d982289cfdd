"""State dicts of torchvision's detectors, brought to our names and our order of classes.

torchvision counts background as class 0 and labels 1..90 for COCO's 80 classes; ours are 0..K-1 in the
order of `category_ids`, and background, where there is one, comes last.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.detectors import Detector
from msefpn.models.factory import build
from msefpn.models.importers.base import Description, Names, coco_classes, rows
from msefpn.models.importers.resnet import resnet_name

NAMES = (
    (r"backbone\.body\.(.+)", r"backbone.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(\w+)", r"neck.laterals.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(\w+)", r"neck.outputs.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.(p\d\.\w+)", r"neck.extra.\1"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(\w+)", r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi.box.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi.box.fc2.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"roi.box.classes.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"roi.box.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"mask.convs.\1.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask.enlarge.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask.masks.\1"),
    (r"head\.classification_head\.cls_logits\.(\w+)", r"head.classes.\1"),
    (r"head\.regression_head\.bbox_reg\.(\w+)", r"head.deltas.\1"),
)
FCOS_NAMES = (
    (r"head\.classification_head\.conv\.(\d+)\.(\w+)", r"head.class_tower.\1.\2"),
    (r"head\.regression_head\.conv\.(\d+)\.(\w+)", r"head.box_tower.\1.\2"),
    (r"head\.regression_head\.bbox_reg\.(\w+)", r"head.distances.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(\w+)", r"head.centreness.\1"),
)
OLD_MASKS = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)")
"""torchvision's own COCO weights number the mask head's convolutions so, from 1."""
TOWERS = re.compile(r"head\.(classification|regression)_head\.conv\.(\d)\.([01])\.(\w+)")
_BOXES = "head.regression_head.bbox_reg.bias"


def is_torchvision(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a torchvision detector with a pyramid."""
    return any(name.startswith("backbone.fpn.inner_blocks.") for name in names)


def label_rows(state: Mapping[str, Tensor]) -> int | None:
    """Rows of the class layer for one anchor, background's included; None: it has no such layer."""
    score = state.get("roi_heads.box_predictor.cls_score.bias")
    if score is not None:
        return len(score)
    score = state.get("head.classification_head.cls_logits.bias")
    return None if score is None else len(score) // _per_cell(state)


def labels_of(state: Mapping[str, Tensor]) -> list[int]:
    """torchvision's labels of the classes: COCO's 80 of 91, else all but the background."""
    count = label_rows(state)
    return list(coco_classes().values()) if count == 91 else list(range(1, count or 1))


def convert_torchvision(names: Names, labels: Sequence[int]) -> None:
    """Take what has a place here, classes in our order.

    Args:
        names: torchvision's tensors.
        labels: torchvision's label of each of our classes.
    """
    state = dict(names.left)
    kind, normed, per_cell = _kind(state), _has_norms(state), _per_cell(state)
    for theirs, tensor in state.items():
        own = _rename(theirs, kind, normed)
        if own is None:
            continue
        if own.startswith(("roi.box.classes.", "roi.box.deltas.", "mask.masks.", "head.classes.")):
            chosen = _class_rows(own, tensor, labels, per_cell)
            names.take(theirs, own, chosen, "classes in our order")
        else:
            names.take(theirs, own)


def describe_torchvision(state: Mapping[str, Tensor]) -> Description:
    """The detector that torchvision's tensors are of.

    Args:
        state: torchvision's.

    Raises:
        UserError: it is none of ours.
    """
    kind = _kind(state)
    body = {name.removeprefix("backbone.body."): x for name, x in state.items()}
    count = label_rows(state)
    if count is None:
        raise UserError("it has no layer of classes")
    fixed = not any(name.endswith("num_batches_tracked") for name in state)
    neck: dict[str, Any] = {"out_channels": rows(state, _first(state))}
    head: dict[str, Any] = {}
    if kind == "retinanet":
        c5 = "backbone.fpn.extra_blocks.p6.weight"
        if c5 in state and rows(state, c5, 1) != neck["out_channels"]:
            neck["extra_levels"] = "conv_c5_relu"
        head = {"head": {"norm": True}} if _has_norms(state) else {}
    config = Config(
        detector=kind,
        backbone=resnet_name(body),
        backbone_options={"norm_eps": 0.0 if fixed and count == 91 else 1e-5},
        neck="fpn",
        neck_options=neck,
        detector_options={"preset": "torchvision", **head},
        size="1333x800",
    )
    classes = tuple(coco_classes()) if count == 91 else None
    return Description(config, 80 if count == 91 else count - 1, classes)


def from_torchvision(
    state: Mapping[str, Tensor],
    classes: Sequence[str],
    labels: Sequence[int],
    *,
    backbone: str = "resnet50",
    norm_eps: float = 0.0,
) -> Detector:
    """Build a detector that detects what torchvision's detector of that kind with a pyramid detects.

    Masks are equal as they are predicted, 28 x 28 cells over a box; here they are laid over the image as
    mmdetection does it. The kinds: `fasterrcnn_*_fpn`, `maskrcnn_*_fpn`, `retinanet_*_fpn`, `fcos_*_fpn`.

    Args:
        state: the whole state dict.
        classes: names of the classes to keep.
        labels: torchvision's label of each of them, such as COCO's category ids; they become `category_ids`.
        backbone: timm's name of the backbone.
        norm_eps: epsilon of batch normalisation: 0 for torchvision's own COCO weights, else 1e-5.

    Raises:
        UserError: the state dict is of another kind of model, or not all of it finds its place.
    """
    config = Config(
        detector=_kind(state),
        backbone=backbone,
        backbone_options={"norm_eps": norm_eps},
        neck="fpn",
        detector_options={"preset": "torchvision"},
    )
    detector = build(config, classes, labels)
    names = Names(dict(state))
    convert_torchvision(names, labels)
    missing, unexpected = detector.load_state_dict(names.own, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if strange := [*names.left, *missing, *unexpected]:
        more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
        raise UserError(
            f"not a torchvision {config.detector} with {backbone} and FPN: "
            f"no place for {', '.join(strange[:4])}{more}"
        )
    return detector.eval()


def _kind(state: Mapping[str, Tensor]) -> str:
    if any(name.startswith("roi_heads.mask_head.") for name in state):
        return "mask_rcnn"
    if any(name.startswith("roi_heads.") for name in state):
        return "faster_rcnn"
    return "fcos" if "head.regression_head.bbox_ctrness.weight" in state else "retinanet"


def _first(state: Mapping[str, Tensor]) -> str:
    """The name of the first lateral convolution's weight, with or without a normalisation beside it."""
    names = (f"backbone.fpn.inner_blocks.0.{end}" for end in ("0.weight", "weight"))
    return next((name for name in names if name in state), "backbone.fpn.inner_blocks.0.0.weight")


def _has_norms(state: Mapping[str, Tensor]) -> bool:
    """Whether RetinaNet's towers are normalised, as in torchvision's second version."""
    return any(re.fullmatch(r"head\.\w+\.conv\.\d\.1\.weight", name) for name in state)


def _per_cell(state: Mapping[str, Tensor]) -> int:
    """Anchors in a cell of a one-stage head."""
    return max(1, len(state[_BOXES]) // 4) if _BOXES in state else 1


def _rename(name: str, kind: str, normed: bool) -> str | None:
    if kind == "retinanet" and (tower := TOWERS.fullmatch(name)):
        branch = "class" if tower[1] == "classification" else "box"
        step = 3 if normed else 2  # conv, norm, activation
        return f"head.{branch}_tower.{step * int(tower[2]) + int(tower[3])}.{tower[4]}"
    if conv := OLD_MASKS.fullmatch(name):
        return f"mask.convs.{int(conv[1]) - 1}.{conv[2]}"
    for pattern, own in FCOS_NAMES + NAMES if kind == "fcos" else NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(own)
    return None


def _class_rows(own: str, tensor: Tensor, labels: Sequence[int], per_cell: int) -> Tensor:
    """Rows of torchvision's class layer in our order. Raises UserError for labels that it does not have."""
    row = torch.tensor(labels, dtype=torch.long)
    if not own.startswith("head.classes."):
        per_cell = 4 if own.startswith("roi.box.deltas.") else 1
    count = len(tensor) // per_cell
    if max(labels, default=0) >= count:
        raise UserError(
            f"label {max(labels)} is not one of the {count} of these weights: labels are 0 to {count - 1}"
        )
    if own.startswith("roi.box.classes."):
        return torch.cat([row, torch.tensor([0])])  # background last
    if own.startswith("roi.box.deltas."):
        return (row[:, None] * 4 + torch.arange(4)).flatten()
    return (row + torch.arange(per_cell)[:, None] * count).flatten()
