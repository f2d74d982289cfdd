"""Fast R-CNN (Girshick, arXiv 1504.08083) on a pyramid: Faster R-CNN's head on given proposals."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options
from msefpn.models.detectors.base import MakeNeck, TwoStage
from msefpn.models.detectors.faster_rcnn import region_head
from msefpn.plugins import register


@register("detector", "fast_rcnn")
def fast_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    roi: Options | None = None,
) -> TwoStage:
    """Fast R-CNN.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: `mmdetection` or `torchvision`, as in `faster_rcnn`.
        roi: arguments of `RoIHead` that differ from the preset's.
    """
    neck = make_neck(start_level=0, extra_levels="none")
    return TwoStage(backbone, neck, None, region_head(backbone, neck, num_classes, preset, roi))
