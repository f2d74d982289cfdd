"""Cascade R-CNN (Cai and Vasconcelos, arXiv 1712.00726) on a pyramid, with mmdetection 2.x's settings."""

from msefpn.models.backbone import Backbone
from msefpn.models.cascade import CascadeHead
from msefpn.models.construct import Options, construct
from msefpn.models.detectors.base import MakeNeck, TwoStage, pooled_levels
from msefpn.models.rpn import RPN
from msefpn.plugins import register

_RPN: Options = {"proposals": (2000, 1000), "border": 0.0, "beta": 1 / 9}
"""What mmdetection's RPN has in a cascade."""


@register("detector", "cascade_rcnn")
def cascade_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    rpn: Options | None = None,
    roi: Options | None = None,
) -> TwoStage:
    """Cascade R-CNN.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        rpn: arguments of `RPN` that differ from mmdetection's for a cascade.
        roi: arguments of `CascadeHead`.
    """
    neck = make_neck(start_level=0, extra_levels="pool")
    return TwoStage(
        backbone,
        neck,
        construct(RPN, "rpn", neck.out_channels, neck.out_strides, **{**_RPN, **(rpn or {})}),
        construct(CascadeHead, "roi", *pooled_levels(backbone, neck), num_classes, **(roi or {})),
    )
