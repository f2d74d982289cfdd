"""Mask R-CNN (He et al., arXiv 1703.06870): Faster R-CNN with a mask head."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options, construct, of_preset
from msefpn.models.detectors.base import MakeNeck, TwoStage, pooled_levels
from msefpn.models.detectors.faster_rcnn import faster_rcnn
from msefpn.models.mask import MaskHead
from msefpn.plugins import register

_PRESETS: dict[str, dict[str, Options]] = {
    "mmdetection": {"roi": {"low_quality_iou": 0.5}, "mask": {}},
    "torchvision": {"roi": {}, "mask": {"sampling_ratio": 2, "aligned": False, "binary": False}},
}
"""Arguments of the mask head, and those of the region head that differ from Faster R-CNN's."""


@register("detector", "mask_rcnn")
def mask_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    rpn: Options | None = None,
    roi: Options | None = None,
    mask: Options | None = None,
) -> TwoStage:
    """Mask R-CNN.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: `mmdetection` or `torchvision`.
        rpn: arguments of `RPN` that differ from the preset's.
        roi: arguments of `RoIHead` that differ from the preset's.
        mask: arguments of `MaskHead` that differ from the preset's.
    """
    own = of_preset(preset, _PRESETS)
    regions = {**own["roi"], **(roi or {})}
    detector = faster_rcnn(backbone, make_neck, num_classes, preset=preset, rpn=rpn, roi=regions)
    chosen = {**own["mask"], **(mask or {})}
    levels = pooled_levels(backbone, detector.neck)
    detector.mask = construct(MaskHead, "mask", *levels, num_classes, **chosen)
    return detector
