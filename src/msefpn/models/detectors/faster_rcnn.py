"""Faster R-CNN (Ren et al., arXiv 1506.01497) on a pyramid (arXiv 1612.03144)."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options, construct, of_preset
from msefpn.models.detectors.base import MakeNeck, TwoStage, pooled_levels
from msefpn.models.roi import RoIHead
from msefpn.models.rpn import RPN
from msefpn.necks import Neck
from msefpn.plugins import register

_PRESETS: dict[str, dict[str, Options]] = {
    "mmdetection": {"rpn": {}, "roi": {}},
    "torchvision": {
        "rpn": {
            "proposals": (2000, 1000),
            "min_size": 1e-3,
            "low_quality_iou": 0.0,
            "reassign": False,
            "ignore_padding": False,
            "at_least_one": False,
            "beta": 1 / 9,
            "clamp_both": False,
            "integer_anchors": True,
        },
        "roi": {
            "own_truth": False,
            "min_size": 1e-2,
            "sampling_ratio": 2,
            "aligned": False,
            "beta": 1 / 9,
            "clamp_both": False,
        },
    },
}
"""Arguments by whose defaults they are. mmdetection's are the constructors' own."""


@register("detector", "faster_rcnn")
def faster_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    rpn: Options | None = None,
    roi: Options | None = None,
) -> TwoStage:
    """Faster R-CNN.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: `mmdetection` or `torchvision`.
        rpn: arguments of `RPN` that differ from the preset's.
        roi: arguments of `RoIHead` that differ from the preset's.
    """
    neck = make_neck(start_level=0, extra_levels="pool")
    rpn_options = {**of_preset(preset, _PRESETS)["rpn"], **(rpn or {})}
    return TwoStage(
        backbone,
        neck,
        construct(RPN, "rpn", neck.out_channels, neck.out_strides, **rpn_options),
        region_head(backbone, neck, num_classes, preset, roi),
    )


def region_head(
    backbone: Backbone, neck: Neck, num_classes: int, preset: str, options: Options | None
) -> RoIHead:
    """The region head of Faster R-CNN and Fast R-CNN."""
    chosen = {**of_preset(preset, _PRESETS)["roi"], **(options or {})}
    if chosen.get("consistent") and "laterals" not in neck.aux:
        raise ValueError("roi's consistent supervision needs a neck that gives its laterals, such as aug_fpn")
    return construct(RoIHead, "roi", *pooled_levels(backbone, neck), num_classes, **chosen)
