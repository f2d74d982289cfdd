"""State dicts of detectron2, brought to our names and our order of anchors, with its settings.

Names and settings are those of its model zoo (R50-FPN, R101-FPN, X101-FPN).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.anchors import AnchorGenerator
from msefpn.models.importers.base import (
    CAFFE,
    MEAN,
    STD,
    STYLES,
    Description,
    Names,
    Style,
    coco_classes,
    rows,
)
from msefpn.models.importers.resnet import resnet_name

_BOTTOM = r"backbone\.bottom_up\."
_ENDS = r"\.(\w+)"
_LATERAL = re.compile(r"backbone\.fpn_lateral(\d)\.weight")
_CELLS = re.compile(r"(?:proposal_generator\.)?anchor_generator\.cell_anchors\.(\d)")
_ANCHORS = 9
"""Of a cell in RetinaNet: three sizes of three ratios."""
_RPN: dict[str, Any] = {
    "proposals": [1000, 1000],
    "pre_nms_top_k": [2000, 1000],
    "low_quality_iou": 0.0,
    "reassign": False,
    "ignore_padding": False,
    "at_least_one": False,
    "clamp_both": False,
}
_ROI: dict[str, Any] = {
    "score": 0.05,
    "nms_iou": 0.5,
    "max_per_image": 100,
    "clamp_both": False,
}
_CASCADE: dict[str, Any] = {
    "stds": [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [1 / 30, 1 / 30, 1 / 15, 1 / 15]],
    "weights": [1.0, 1.0, 1.0],
    "beta": 0.0,
    "average_scores": True,
}
_DENSE: dict[str, Any] = {
    "score": 0.05,
    "nms_iou": 0.5,
    "max_per_image": 100,
    "pre_nms_top_k": 1000,
    "reassign": False,
    "ignore_padding": False,
    "beta": 0.1,
    "clamp_both": False,
}
"""Defaults of detectron2's configuration, as far as ours differ or might change."""


def is_detectron2(names: Mapping[str, Any]) -> bool:
    """Whether these are the names of a detectron2 detector with a pyramid."""
    return any(_LATERAL.fullmatch(name) for name in names)


def style_of(state: Mapping[str, Tensor], given: str | None) -> tuple[Style, str]:
    """The style of the weights, and where it is from.

    The zoo's ResNets are MSRA's, of caffe style; its ResNeXts have their strides in the 3x3 convolution and
    read BGR images divided by a deviation. Older files hold mean and deviation as `pixel_mean`, `pixel_std`.
    """
    if given is not None:
        return STYLES[given], "given"
    inner = state.get("backbone.bottom_up.res2.0.conv2.weight")
    grouped = inner is not None and inner.ndim == 4 and inner.shape[0] != inner.shape[1]
    style = Style(bgr=True) if grouped else CAFFE
    mean, std = state.get("pixel_mean"), state.get("pixel_std")
    if mean is None or std is None or mean.numel() != 3 or std.numel() != 3:
        return style, "that of detectron2's zoo"
    bgr = bool(mean.flatten()[0] < mean.flatten()[2])
    order = -1 if bgr else 1
    named = [_rounded(x, known)[::order] for x, known in ((mean, MEAN[::order]), (std, STD[::order]))]
    return Style(style.stride_in_1x1, bgr, named[0], named[1]), "its pixel_mean and pixel_std"


def convert_detectron2(names: Names) -> None:
    """Take what has a place here. Raises UserError for anchors that are not ours."""
    state = dict(names.left)
    first = min([int(match[1]) for name in state if (match := _LATERAL.fullmatch(name))], default=2)

    def level(match: re.Match[str]) -> str:
        kind = {"lateral": "laterals", "output": "outputs"}[match[1]]
        return f"neck.{kind}.{int(match[2]) - first}.{match[3]}"

    dense = "head.cls_score.weight" in state
    _check_anchors(names, dense)
    for name in ("pixel_mean", "pixel_std"):
        if name in names.left:
            names.ignore(name, "read as the normalisation of images")
    for name in [name for name in names.left if dense and re.match(r"head\.(cls_score|bbox_pred)\.", name)]:
        ours = name.replace("cls_score", "classes").replace("bbox_pred", "deltas")
        names.take(name, ours, _by_ratio, "anchors in our order, ratio by ratio")
    names.rename(_table(level))


def describe_detectron2(state: Mapping[str, Tensor], style: Style) -> Description:
    """The detector that detectron2's tensors are of. Raises UserError where it is none of ours."""
    names = Names({name: x for name, x in state.items() if name.startswith("backbone.bottom_up.")})
    names.rename(_table(lambda match: match[0]))
    body = {name.removeprefix("backbone.body."): x for name, x in names.own.items()}
    lateral = next(name for name in state if _LATERAL.fullmatch(name))
    neck: dict[str, Any] = {"out_channels": rows(state, lateral)}
    if "head.cls_score.weight" in state:
        kind = "retinanet"
        if rows(state, "head.bbox_pred.weight") != 4 * _ANCHORS:
            raise UserError(
                f"its cells have {rows(state, 'head.bbox_pred.weight') // 4} anchors: only 9 are read"
            )
        num_classes = rows(state, "head.cls_score.weight") // _ANCHORS
        towers = {m[1] for name in state if (m := re.fullmatch(r"head\.cls_subnet\.(\d+)\.weight", name))}
        of_c5 = rows(state, "backbone.top_block.p6.weight", 1) != neck["out_channels"]
        neck["extra_levels"] = "conv_c5_relu" if of_c5 else "conv_p5_relu"
        options: dict[str, Any] = {"head": {"depth": len(towers), **_DENSE}}
    elif any(name.startswith("roi_heads.") for name in state):
        kind, num_classes, options = _regions(state)
    else:
        heads = sorted({name.split(".")[0] for name in state if not name.startswith("backbone.")})
        raise UserError(f"its head is none of ours: it has {', '.join(heads[:5]) or 'none'}")
    config = Config(
        detector=kind,
        detector_options=options,
        backbone=resnet_name(body),
        backbone_options=style.options,
        neck="fpn",
        neck_options=neck,
        size="1333x800",
    )
    return Description(config, num_classes, tuple(coco_classes()) if num_classes == 80 else None)


def _regions(state: Mapping[str, Tensor]) -> tuple[str, int, dict[str, Any]]:
    """Kind, number of classes and `detector_options` of a two-stage detector."""
    cascade = "roi_heads.box_predictor.0.cls_score.weight" in state
    stage = "0." if cascade else ""
    num_classes = rows(state, f"roi_heads.box_predictor.{stage}cls_score.weight") - 1
    roi: dict[str, Any] = {"hidden": rows(state, f"roi_heads.box_head.{stage}fc1.weight"), **_ROI}
    options: dict[str, Any] = {"rpn": _RPN, "roi": roi}
    if cascade:
        roi |= _CASCADE
        options["rpn"] = {**_RPN, "proposals": [2000, 1000]}
        return "cascade_rcnn", num_classes, options
    roi["own_truth"] = False
    if num_classes > 1 and rows(state, "roi_heads.box_predictor.bbox_pred.weight") == 4:
        roi["class_agnostic"] = True
    if "roi_heads.mask_head.predictor.weight" not in state:
        return "faster_rcnn", num_classes, options
    convs = {
        m[1] for name in state if (m := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.weight", name))
    }
    options["mask"] = {"hidden": rows(state, "roi_heads.mask_head.deconv.weight"), "depth": len(convs)}
    return "mask_rcnn", num_classes, options


def _table(level: Callable[[re.Match[str]], str]) -> list[tuple[str, str | Callable[[re.Match[str]], str]]]:
    """Patterns of detectron2's names, and ours."""
    box: tuple[tuple[str, str, str], ...] = (("box_head", "fc1", "fc1"), ("box_head", "fc2", "fc2"))
    box += (("box_predictor", "cls_score", "classes"), ("box_predictor", "bbox_pred", "deltas"))
    table: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (rf"{_BOTTOM}stem\.conv1\.norm{_ENDS}", r"backbone.body.bn1.\1"),
        (rf"{_BOTTOM}stem\.conv1\.weight", "backbone.body.conv1.weight"),
        (rf"{_BOTTOM}res(\d)\.(\d+)\.conv(\d)\.norm{_ENDS}", _block("bn{}.{}")),
        (rf"{_BOTTOM}res(\d)\.(\d+)\.conv(\d)\.(weight)", _block("conv{}.{}")),
        (rf"{_BOTTOM}res(\d)\.(\d+)\.(shortcut)\.norm{_ENDS}", _block("downsample.1.{1}")),
        (rf"{_BOTTOM}res(\d)\.(\d+)\.(shortcut)\.(weight)", _block("downsample.0.{1}")),
        (r"backbone\.fpn_(lateral|output)(\d)\.(weight|bias)", level),
        (rf"backbone\.top_block\.(p[67]){_ENDS}", r"neck.extra.\1.\2"),
        (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.conv.\1"),
        (rf"proposal_generator\.rpn_head\.objectness_logits{_ENDS}", r"rpn.objectness.\1"),
        (rf"proposal_generator\.rpn_head\.anchor_deltas{_ENDS}", r"rpn.deltas.\1"),
        (
            r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
            lambda m: f"mask.convs.{int(m[1]) - 1}.{m[2]}",
        ),
        (rf"roi_heads\.mask_head\.deconv{_ENDS}", r"mask.enlarge.\1"),
        (rf"roi_heads\.mask_head\.predictor{_ENDS}", r"mask.masks.\1"),
        (rf"head\.cls_subnet\.(\d+){_ENDS}", r"head.class_tower.\1.\2"),
        (rf"head\.bbox_subnet\.(\d+){_ENDS}", r"head.box_tower.\1.\2"),
    ]
    for part, theirs, ours in box:
        table.append((rf"roi_heads\.{part}\.{theirs}\.(weight|bias)", rf"roi.box.{ours}.\1"))
        table.append((rf"roi_heads\.{part}\.(\d)\.{theirs}\.(weight|bias)", rf"roi.stages.\1.box.{ours}.\2"))
    return table


def _block(end: str) -> Callable[[re.Match[str]], str]:
    """res2..5 are layer1..4."""

    def name(match: re.Match[str]) -> str:
        return f"backbone.body.layer{int(match[1]) - 1}.{match[2]}.{end.format(match[3], match[4])}"

    return name


def _by_ratio(x: Tensor) -> Tensor:
    """Rows (size, ratio, value) of nine anchors as (ratio, size, value)."""
    if len(x) % _ANCHORS:
        raise UserError(f"a layer of {len(x)} rows has not nine anchors in a cell")
    ordered: Tensor = x.unflatten(0, (3, 3, -1)).transpose(0, 1).flatten(0, 2)
    return ordered


def _check_anchors(names: Names, dense: bool) -> None:
    """Leave the anchors' buffers out, once they are seen to be ours. Raises UserError."""
    found = {int(match[1]): name for name in names.left if (match := _CELLS.fullmatch(name))}
    scales = [4 * 2 ** (i / 3) for i in range(3)] if dense else [8.0]
    ours = AnchorGenerator([2 ** (i + 3 if dense else i + 2) for i in range(len(found))], scales)
    for index, name in sorted(found.items()):
        theirs = names.left[name].float()
        theirs = _by_ratio(theirs) if dense and len(theirs) == _ANCHORS else theirs
        expected = getattr(ours, f"cell_{index}", None)
        if (
            expected is None
            or theirs.shape != expected.shape
            or not torch.allclose(theirs, expected, atol=0.01)
        ):
            raise UserError(f"its anchors are others than those of detectron2's zoo: see {name}")
        names.ignore(name, "anchors, equal to ours")


def _rounded(values: Tensor, known: tuple[float, ...]) -> tuple[float, ...]:
    """Three numbers, or the known ones where they differ by rounding alone."""
    found = tuple(values.flatten().double().tolist())
    return known if all(abs(a - b) < 0.01 for a, b in zip(found, known, strict=True)) else found
