"""State dicts of mmdetection 2.x and 3.x, brought to our names.

Its classes, deltas and order of fully connected inputs are ours: a detector is a renaming, but for the order
of the image's channels in caffe style.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.importers.base import Carried, Description, Names, coco_classes, rows
from msefpn.models.importers.mmdetection_settings import Settings
from msefpn.models.importers.resnet import resnet_name

_Rule = tuple[str, str | Callable[[re.Match[str]], str]]
_Pairs = tuple[tuple[str, str], ...]
_PYRAMID: _Pairs = ((r"lateral_convs\.(\d+)\.conv", "laterals"), (r"fpn_convs\.(\d+)\.conv", "outputs"))
_PYRAMID += ((r"downsample_convs\.(\d+)\.conv", "downs"), (r"pafpn_convs\.(\d+)\.conv", "smooths"))
_BOX = ((r"shared_fcs\.0", "fc1"), (r"shared_fcs\.1", "fc2"), ("fc_cls", "classes"), ("fc_reg", "deltas"))
_RPN = (("rpn_conv", "conv"), ("rpn_cls", "objectness"), ("rpn_reg", "deltas"))
_MASK = ((r"convs\.(\d+)\.conv", r"convs.\1"), ("upsample", "enlarge"), ("conv_logits", "masks"))
_RETINA = (("retina_cls", "classes"), ("retina_reg", "deltas"))
_FCOS: _Pairs = (("(?:conv|fcos)_cls", "classes"), ("(?:conv|fcos)_reg", "distances"))
_FCOS += (("(?:conv|fcos)_centerness", "centreness"),)
_BRANCHES = {"cls": "class", "reg": "box"}
_ENDS = r"\.(weight|bias)"


def is_mmdetection(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of an mmdetection detector with a pyramid."""
    return any(re.match(r"neck\.(0\.)?lateral_convs\.", name) for name in names)


def convert_mmdetection(names: Names) -> None:
    """Take what has a place here."""
    stacked = any(name.startswith("neck.0.") for name in names.left)
    theirs, ours = (r"neck\.0\.", "neck.members.0.") if stacked else (r"neck\.", "neck.")
    levels = _count(names.left, theirs + r"lateral_convs\.(\d+)\.conv\.weight")
    normed = any(re.match(r"bbox_head\.cls_convs\.\d+\.gn\.", name) for name in names.left)
    table: list[_Rule] = [(r"backbone\.(.+)", r"backbone.body.\1")]
    table += [(rf"{theirs}fpn_convs\.(\d+)\.conv{_ENDS}", _fpn_conv(levels, ours))]
    table += [(theirs + part + _ENDS, rf"{ours}{own}.\1.\2") for part, own in _PYRAMID]
    table += [(rf"neck\.1\.refine\.(?:conv_)?(theta|phi|g|out)\.conv{_ENDS}", r"neck.members.1.refine.\1.\2")]
    table += _plain("rpn_head", "rpn", _RPN)
    table += _plain(r"roi_head\.bbox_head", "roi.box", _BOX)
    table += [
        (rf"roi_head\.bbox_head\.(\d+)\.{part}{_ENDS}", rf"roi.stages.\1.box.{own}.\2") for part, own in _BOX
    ]
    table += [
        (rf"roi_head\.mask_head\.{part}{_ENDS}", rf"mask.{own}.\{2 if '(' in part else 1}")
        for part, own in _MASK
    ]
    table += _plain("bbox_head", "head", _FCOS + _RETINA)
    table += [(rf"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|gn){_ENDS}", _tower(3 if normed else 2))]
    names.rename(table)
    _take_scales(names)
    for name in list(names.left):
        if name.startswith("ema_"):
            names.ignore(name, "the other half of an average of weights")
    if normed:
        _add_biases(names)


def describe_mmdetection(state: Mapping[str, Tensor], settings: Settings) -> Description:
    """The detector that mmdetection's tensors are of.

    Args:
        state: mmdetection's.
        settings: what the file's own text says of it.

    Raises:
        UserError: it is none of ours.
    """
    body = {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
    if re.match(r"[01]\.", settings.version):
        raise UserError(
            f"it is of version {settings.version}, whose classes and anchors are others: convert it to 2.x "
            "with mmdetection's tools/model_converters/upgrade_model_version.py"
        )
    kind = _kind(state)
    neck, options = _neck(state, kind, settings)
    if kind in ("retinanet", "fcos"):
        num_classes, of_detector = _dense(state, kind, settings)
    else:
        num_classes, of_detector = _regions(state, kind, settings)
    config = Config(
        detector=kind,
        detector_options=of_detector,
        backbone=resnet_name(body),
        backbone_options=settings.style.options,
        neck=neck,
        neck_options=options,
        size=settings.size,
    )
    classes = settings.classes or (tuple(coco_classes()) if num_classes == 80 else None)
    return Description(config, num_classes, classes)


def _count(names: Mapping[str, Any], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})


def _plain(theirs: str, ours: str, parts: Sequence[tuple[str, str]]) -> list[_Rule]:
    return [(rf"{theirs}\.{part}{_ENDS}", rf"{ours}.{own}.\1") for part, own in parts]


def _fpn_conv(levels: int, ours: str) -> Callable[[re.Match[str]], str]:
    """Outputs of the levels first, then the convolutions of P6 and P7."""

    def name(match: re.Match[str]) -> str:
        index = int(match[1])
        place = f"outputs.{index}" if index < levels else f"extra.p{6 + index - levels}"
        return f"{ours}{place}.{match[2]}"

    return name


def _tower(step: int) -> Callable[[re.Match[str]], str]:
    """A convolution, its normalisation if there is one, and an activation are `step` layers of ours."""

    def name(match: re.Match[str]) -> str:
        index = step * int(match[2]) + (match[3] == "gn")
        return f"head.{_BRANCHES[match[1]]}_tower.{index}.{match[4]}"

    return name


def _take_scales(names: Names) -> None:
    """Put the factors of FCOS' levels into one tensor."""
    found = [name for name in names.left if re.fullmatch(r"bbox_head\.scales\.\d+\.scale", name)]
    found.sort(key=lambda name: int(name.split(".")[2]))
    if found and all(names.left[name].numel() == 1 for name in found):
        names.own["head.scales"] = torch.stack([names.left.pop(name).flatten()[0] for name in found])
        names.carried += [Carried(name, "head.scales", "one tensor for all levels") for name in found]


def _add_biases(names: Names) -> None:
    """Give FCOS' towers, which have biases here, zeros where theirs have none."""
    for name in [name for name in names.own if re.fullmatch(r"head\.\w+_tower\.\d+\.weight", name)]:
        bias = name.removesuffix("weight") + "bias"
        if bias not in names.own:
            names.own[bias] = torch.zeros(len(names.own[name]))


def _kind(state: Mapping[str, Tensor]) -> str:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in state)

    if has("roi_head.mask_head.convs."):
        return "mask_rcnn"
    if has("roi_head.bbox_head.0."):
        return "cascade_rcnn"
    if has("roi_head.bbox_head.fc_cls."):
        return "faster_rcnn"
    if has("bbox_head.retina_cls."):
        return "retinanet"
    if has("bbox_head.conv_centerness.") or has("bbox_head.fcos_centerness."):
        return "fcos"
    heads = sorted(
        {".".join(name.split(".")[:2]) for name in state if not name.startswith(("backbone.", "neck."))}
    )
    raise UserError(f"its head is none of ours: it has {', '.join(heads[:5]) or 'none'}")


def _neck(state: Mapping[str, Tensor], kind: str, settings: Settings) -> tuple[str, dict[str, Any]]:
    """Name and options of the neck."""
    prefix = "neck.0." if any(name.startswith("neck.0.") for name in state) else "neck."
    name = "pafpn" if any(x.startswith(f"{prefix}downsample_convs.") for x in state) else "fpn"
    width = rows(state, f"{prefix}lateral_convs.0.conv.weight")
    levels = _count(state, re.escape(prefix) + r"lateral_convs\.(\d+)\.conv\.weight")
    options: dict[str, Any] = {"out_channels": width}
    first = f"{prefix}fpn_convs.{levels}.conv.weight"
    if first in state:
        of_c5 = rows(state, f"{prefix}lateral_convs.{levels - 1}.conv.weight", 1)
        where = settings.extra_convs or ("on_input" if kind == "retinanet" else "on_output")
        if rows(state, first, 1) != width:
            where = "on_input"
        elif of_c5 != width:
            where = where if where != "on_input" else "on_output"
        relu = settings.extra_relu if settings.extra_relu is not None else where == "on_output"
        extra = {("on_input", False): "conv_c5", ("on_input", True): "conv_c5_relu"}
        extra |= {("on_output", True): "conv_p5_relu"}
        if (where, relu) not in extra:
            raise UserError(
                f"its pyramid's extra levels ({where}, {'a' if relu else 'no'} ReLU between) are not ours"
            )
        options["extra_levels"] = extra[where, relu]
    return (f"{name}+bfp" if "neck.1.refine.conv_out.conv.weight" in state else name), options


def _regions(state: Mapping[str, Tensor], kind: str, settings: Settings) -> tuple[int, dict[str, Any]]:
    """Number of classes and `detector_options` of a two-stage detector."""
    box = "roi_head.bbox_head." + ("0." if kind == "cascade_rcnn" else "")
    num_classes = rows(state, f"{box}fc_cls.weight") - 1
    roi: dict[str, Any] = {"hidden": rows(state, f"{box}shared_fcs.0.weight"), **settings.region_head()}
    if kind == "cascade_rcnn":
        stages = _count(state, r"roi_head\.bbox_head\.(\d+)\.fc_cls\.weight")
        if stages != 3:
            raise UserError(f"its cascade has {stages} stages: only 3 are read")
    elif num_classes > 1 and rows(state, f"{box}fc_reg.weight") == 4:
        roi["class_agnostic"] = True
    proposals = 2000 if kind == "cascade_rcnn" else 1000
    options = {"rpn": settings.rpn(rows(state, "rpn_head.rpn_cls.weight"), proposals), "roi": roi}
    if kind == "mask_rcnn":
        options["mask"] = {
            "hidden": rows(state, "roi_head.mask_head.convs.0.conv.weight"),
            "depth": _count(state, r"roi_head\.mask_head\.convs\.(\d+)\.conv\.weight"),
        }
    return num_classes, options


def _dense(state: Mapping[str, Tensor], kind: str, settings: Settings) -> tuple[int, dict[str, Any]]:
    """Number of classes and `detector_options` of a one-stage detector."""
    head: dict[str, Any] = {"depth": _count(state, r"bbox_head\.cls_convs\.(\d+)\.conv\.weight")}
    head |= settings.dense_head()
    if kind == "retinanet":
        anchors = rows(state, "bbox_head.retina_reg.weight") // 4
        head |= settings.dense_anchors(anchors)
        return rows(state, "bbox_head.retina_cls.weight") // max(anchors, 1), {"head": head}
    score = "conv_cls" if "bbox_head.conv_cls.weight" in state else "fcos_cls"
    head = {"nms_iou": 0.5, **head, **settings.centre_head()}
    return rows(state, f"bbox_head.{score}.weight"), {"head": head}
