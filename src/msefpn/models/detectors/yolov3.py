"""YOLOv3 (Redmon and Farhadi, arXiv 1804.02767): its head on a pyramid of three levels."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options, construct
from msefpn.models.detectors.base import MakeNeck, OneStage, start_at
from msefpn.models.yolo import YOLOHead
from msefpn.plugins import register


@register("detector", "yolov3")
def yolov3(
    backbone: Backbone, make_neck: MakeNeck, num_classes: int, *, head: Options | None = None
) -> OneStage:
    """YOLOv3.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        head: arguments of `YOLOHead`.
    """
    neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="none")
    levels = neck.out_channels, neck.out_strides
    return OneStage(backbone, neck, construct(YOLOHead, "head", *levels, num_classes, **(head or {})))
