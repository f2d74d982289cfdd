"""State dicts of torchvision's detectors, brought to our names and our order of classes.

torchvision counts background as class 0 and labels 1..90 for COCO's 80 classes; ours are 0..K-1 in the
order of `category_ids`, and background, where there is one, comes last.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.detectors import Detector, OneStage
from msefpn.models.factory import build
from msefpn.models.fcos import FCOSHead
from msefpn.models.retina import RetinaHead

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


def is_torchvision(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a torchvision detector with a pyramid."""
    return any(name.startswith("backbone.fpn.inner_blocks.") for name in state)


def convert_torchvision(
    state: Mapping[str, Tensor], detector: Detector, labels: Sequence[int] | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename and reorder.

    Args:
        state: torchvision's.
        detector: what it shall fit.
        labels: torchvision's label of each of our classes; None: the detector's category ids, as
            torchvision's COCO weights have them, if the largest is the last row of the head; else the
            heads' class layers are left out.

    Returns:
        Tensors under our names, and the names of torchvision's that have no place, with the reason.
    """
    converted: dict[str, Tensor] = {}
    left_out: list[str] = []
    for name, tensor in state.items():
        own = _rename(name, detector)
        if own is None:
            left_out.append(name)
        elif own.startswith(("roi.box.classes.", "roi.box.deltas.", "mask.masks.", "head.classes.")):
            rows = _class_rows(own, tensor, labels, detector)
            if rows is None:
                left_out.append(f"{name} (its classes are others)")
            else:
                converted[own] = tensor[rows]
        else:
            converted[own] = tensor
    return converted, left_out


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
    converted, left_out = convert_torchvision(state, detector, labels)
    missing, unexpected = detector.load_state_dict(converted, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if strange := [*left_out, *missing, *unexpected]:
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


def _rename(name: str, detector: Detector) -> str | None:
    head = detector.head if isinstance(detector, OneStage) else None
    if isinstance(head, RetinaHead) and (tower := TOWERS.fullmatch(name)):
        branch = "class" if tower[1] == "classification" else "box"
        step = 3 if head.norm else 2  # conv, norm, activation
        return f"head.{branch}_tower.{step * int(tower[2]) + int(tower[3])}.{tower[4]}"
    if conv := OLD_MASKS.fullmatch(name):
        return f"mask.convs.{int(conv[1]) - 1}.{conv[2]}"
    for pattern, own in FCOS_NAMES + NAMES if isinstance(head, FCOSHead) else NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(own)
    return None


def _class_rows(own: str, tensor: Tensor, labels: Sequence[int] | None, detector: Detector) -> Tensor | None:
    """Rows of torchvision's class layer in our order, or None where the labels are not its classes."""
    row = torch.tensor(detector.category_ids if labels is None else labels)
    if own.startswith("head.classes."):
        head = detector.head if isinstance(detector, OneStage) else None
        per_cell = head.anchors.per_cell if isinstance(head, (RetinaHead, FCOSHead)) else 1
    else:
        per_cell = 4 if own.startswith("roi.box.deltas.") else 1
    count = len(tensor) // per_cell
    last = int(row.max())
    if last >= count or (labels is None and last != count - 1):
        return None
    if own.startswith("roi.box.classes."):
        return torch.cat([row, torch.tensor([0])])  # background last
    if own.startswith("roi.box.deltas."):
        return (row[:, None] * 4 + torch.arange(4)).flatten()
    return (row + torch.arange(per_cell)[:, None] * count).flatten()
