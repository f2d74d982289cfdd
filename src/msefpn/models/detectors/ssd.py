"""SSD (Liu et al., arXiv 1512.02325): its multi-level head on a pyramid of five levels."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options, construct
from msefpn.models.detectors.base import MakeNeck, OneStage, start_at
from msefpn.models.ssd import SSDHead
from msefpn.plugins import register


@register("detector", "ssd")
def ssd(
    backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, head: Options | None = None
) -> OneStage:
    """SSD.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        head: arguments of `SSDHead`.
    """
    neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="conv_p5_relu")
    levels = neck.out_channels, neck.out_strides
    return OneStage(backbone, neck, construct(SSDHead, "head", *levels, num_classes, **(head or {})))
