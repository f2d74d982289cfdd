"""From names and options to a detector: the one place where names become objects."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from msefpn.config import Config
from msefpn.errors import UserError, unknown_name
from msefpn.models.backbone import Backbone
from msefpn.models.cascade import CascadeHead
from msefpn.models.detector import DenseHead, Detector, OneStage, TwoStage
from msefpn.models.fcos import FCOSHead
from msefpn.models.mask import MaskHead
from msefpn.models.retina import RetinaHead
from msefpn.models.roi import RoIHead
from msefpn.models.rpn import RPN
from msefpn.models.ssd import SSDHead
from msefpn.models.yolo import YOLOHead
from msefpn.necks import NECKS, Neck, Stack
from msefpn.plugins import register

for _name, _neck in NECKS.items():
    register("neck", _name)(_neck)

T = TypeVar("T")
MakeNeck = Callable[..., Neck]
Options = Mapping[str, Any]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "mmdetection": {
        "rpn": {},
        "roi": {},
        "mask": {},
        "retina": {},
        "retina_neck": {"extra_levels": "conv_c5"},
        "fcos": {},
    },
    "torchvision": {
        "rpn": {
            "proposals": (2000, 1000),
            "min_size": 1e-3,
            "low_quality_iou": 0.0,
            "reassign": False,
            "ignore_padding": False,
            "beta": 1 / 9,
            "clamp_both": False,
            "integer_anchors": True,
        },
        "roi": {"min_size": 1e-2, "sampling_ratio": 2, "aligned": False, "beta": 1 / 9, "clamp_both": False},
        "mask": {"sampling_ratio": 2, "aligned": False, "binary": False},
        "retina": {
            "reassign": False,
            "ignore_padding": False,
            "per_image": True,
            "max_per_image": 300,
            "min_size": -1.0,
            "clamp_both": False,
            "integer_anchors": True,
        },
        "retina_neck": {"extra_levels": "conv_p5_relu"},
        "fcos": {"score": 0.2, "min_size": -1.0, "offset": 0.0, "integer_anchors": True},
    },
}
"""Constructor arguments by whose habits they follow. mmdetection's are the constructors' own defaults."""


def faster_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    rpn: Options | None = None,
    roi: Options | None = None,
) -> TwoStage[RoIHead]:
    """Faster R-CNN (arXiv 1506.01497) on a pyramid (arXiv 1612.03144).

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: name in `PRESETS`.
        rpn: arguments of `RPN` that differ from the preset's.
        roi: arguments of `RoIHead` that differ from the preset's.
    """
    neck = make_neck(start_level=0, extra_levels="pool")
    proposing = _preset(preset)["rpn"] | dict(rpn or {})
    return TwoStage(
        backbone,
        neck,
        _construct(RPN, "rpn", neck.out_channels, neck.out_strides, **proposing),
        _region_head(backbone, neck, num_classes, preset, roi),
    )


def mask_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    rpn: Options | None = None,
    roi: Options | None = None,
    mask: Options | None = None,
) -> TwoStage[RoIHead]:
    """Mask R-CNN (arXiv 1703.06870): Faster R-CNN with a mask head.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: name in `PRESETS`.
        rpn: arguments of `RPN` that differ from the preset's.
        roi: arguments of `RoIHead` that differ from the preset's.
        mask: arguments of `MaskHead` that differ from the preset's.
    """
    detector = faster_rcnn(backbone, make_neck, num_classes, preset=preset, rpn=rpn, roi=roi)
    drawing = _preset(preset)["mask"] | dict(mask or {})
    detector.learns_masks = True
    detector.mask = _construct(MaskHead, "mask", *_pooled(backbone, detector.neck), num_classes, **drawing)
    return detector


def fast_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    roi: Options | None = None,
) -> TwoStage[RoIHead]:
    """Fast R-CNN (arXiv 1504.08083) on a pyramid: Faster R-CNN's head on given proposals.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: name in `PRESETS`.
        roi: arguments of `RoIHead` that differ from the preset's.
    """
    neck = make_neck(start_level=0, extra_levels="none")
    return TwoStage(backbone, neck, None, _region_head(backbone, neck, num_classes, preset, roi))


def cascade_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    rpn: Options | None = None,
    roi: Options | None = None,
) -> TwoStage[CascadeHead]:
    """Cascade R-CNN (arXiv 1712.00726) on a pyramid, with mmdetection 2.x's settings.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        rpn: arguments of `RPN` that differ from mmdetection's for a cascade.
        roi: arguments of `CascadeHead`.
    """
    neck = make_neck(start_level=0, extra_levels="pool")
    proposing = {"proposals": (2000, 1000), "border": 0.0, "beta": 1 / 9} | dict(rpn or {})
    return TwoStage(
        backbone,
        neck,
        _construct(RPN, "rpn", neck.out_channels, neck.out_strides, **proposing),
        _construct(CascadeHead, "roi", *_pooled(backbone, neck), num_classes, **dict(roi or {})),
    )


def _region_head(
    backbone: Backbone, neck: Neck, num_classes: int, preset: str, options: Options | None
) -> RoIHead:
    """The region head of a detector that has one stage of them."""
    chosen = _preset(preset)["roi"] | dict(options or {})
    if chosen.get("consistent") and "laterals" not in neck.aux:
        raise ValueError("roi's consistent supervision needs a neck that gives its laterals, such as aug_fpn")
    return _construct(RoIHead, "roi", *_pooled(backbone, neck), num_classes, **chosen)


def _pooled(backbone: Backbone, neck: Neck) -> tuple[int, list[int]]:
    """Channels and strides of the levels that regions are pooled from: not the extra ones."""
    return neck.out_channels, neck.out_strides[: len(backbone.strides) - neck.start_level]


def retinanet(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    head: Options | None = None,
) -> OneStage[RetinaHead]:
    """RetinaNet (arXiv 1708.02002).

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        preset: name in `PRESETS`.
        head: arguments of `RetinaHead` that differ from the preset's.
    """
    chosen = _preset(preset)
    neck = make_neck(start_level=1, **chosen["retina_neck"])
    return _one_stage(RetinaHead, backbone, neck, num_classes, chosen["retina"] | dict(head or {}))


def fcos(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    head: Options | None = None,
) -> OneStage[FCOSHead]:
    """FCOS (arXiv 2006.09214).

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        preset: name in `PRESETS`; `mmdetection` stands for the journal paper's settings.
        head: arguments of `FCOSHead` that differ from the preset's.
    """
    chosen = _preset(preset)["fcos"] | dict(head or {})
    neck = make_neck(start_level=1, extra_levels="conv_p5_relu")
    return _one_stage(FCOSHead, backbone, neck, num_classes, chosen)


def ssd(
    backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, head: Options | None = None
) -> OneStage[SSDHead]:
    """SSD (arXiv 1512.02325): its multi-level head on a pyramid of five levels.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        head: arguments of `SSDHead`.
    """
    neck = make_neck(start_level=1, extra_levels="conv_p5_relu")
    return _one_stage(SSDHead, backbone, neck, num_classes, dict(head or {}))


def yolov3(
    backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, head: Options | None = None
) -> OneStage[YOLOHead]:
    """YOLOv3 (arXiv 1804.02767): its head on a pyramid of three levels.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        head: arguments of `YOLOHead`.
    """
    neck = make_neck(start_level=1, extra_levels="none")
    return _one_stage(YOLOHead, backbone, neck, num_classes, dict(head or {}))


def _one_stage(
    head: Callable[..., DenseHead], backbone: Backbone, neck: Neck, num_classes: int, options: Options
) -> OneStage[DenseHead]:
    """A detector whose head reads every level of the neck."""
    made = _construct(head, "head", neck.out_channels, neck.out_strides, num_classes, **options)
    return OneStage(backbone, neck, made)


DETECTORS: dict[str, Callable[..., Detector]] = {
    "faster_rcnn": faster_rcnn,
    "fast_rcnn": fast_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
    "ssd": ssd,
    "yolov3": yolov3,
}


def build(config: Config, classes: Sequence[str], category_ids: Sequence[int] | None = None) -> Detector:
    """Build a detector with random weights.

    Args:
        config: names and options of its parts.
        classes: names of the K classes.
        category_ids: their ids in the annotation file; None: 1..K.

    Raises:
        UserError: an unknown name or option.
    """
    check_neck(config.neck)
    if config.detector not in DETECTORS:
        raise unknown_name("detector", config.detector, DETECTORS)
    backbone = _construct(Backbone, "backbone_options", config.backbone, **config.backbone_options)
    make_neck = functools.partial(_make_neck, config, backbone)
    factory = DETECTORS[config.detector]
    detector = _construct(
        factory, "detector_options", backbone, make_neck, len(classes), **config.detector_options
    )
    detector.config = config
    detector.classes = tuple(classes)
    detector.category_ids = tuple(category_ids or range(1, len(classes) + 1))
    return detector.to(memory_format=torch.channels_last)


def _make_neck(config: Config, backbone: Backbone, **defaults: Any) -> Neck:
    """The neck, or stack of necks, of a configuration; the options are those of its first."""
    first, *others = config.neck.split("+")
    options = defaults | config.neck_options
    members: list[Neck] = []
    with torch.random.fork_rng(devices=[]):  # the same seed gives the heads the same weights on any neck
        members.append(
            _construct(NECKS[first], "neck_options", backbone.channels, backbone.strides, **options)
        )
        for name in others:
            below = members[-1]
            channels = [below.out_channels] * len(below.out_strides)
            members.append(_construct(NECKS[name], "neck", channels, below.out_strides, below.out_channels))
        return Stack(members) if others else members[0]


def check_neck(name: str) -> None:
    """Raise UserError if a neck's name, or a stack's, cannot be."""
    first, *others = name.split("+")
    for member in (first, *others):
        if member not in NECKS:
            raise unknown_name("neck", member, NECKS)
    if NECKS[first].on_top:
        raise UserError(f"neck '{name}': {first} reads another neck's pyramid: write fpn+{first}")
    for member in others:
        if not NECKS[member].on_top:
            raise UserError(f"neck '{name}': {member} reads a backbone's maps: it can only come first")


def _preset(name: str) -> dict[str, dict[str, Any]]:
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def _construct(make: Callable[..., T], what: str, *args: Any, **options: Any) -> T:
    """Call a constructor; options that it does not know, or refuses, are the user's mistake."""
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    positional = [p for p in inspect.signature(make).parameters if p not in known]
    for name in options:
        if name not in known and name not in positional[len(args) :]:
            raise unknown_name(f"key in {what}", name, known + positional[len(args) :])
    try:
        return make(*args, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from error
