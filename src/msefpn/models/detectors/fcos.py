"""FCOS (Tian et al., TPAMI, arXiv 2006.09214)."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options, construct, of_preset
from msefpn.models.detectors.base import MakeNeck, OneStage, start_at
from msefpn.models.fcos import FCOSHead
from msefpn.plugins import register

_PRESETS: dict[str, dict[str, Options]] = {
    "mmdetection": {"head": {}},
    "journal": {"head": {"root": True}},
    "conference": {
        "head": {
            "radius": None,
            "relative": False,
            "centreness_branch": "class",
            "iou_loss": "iou",
            "nms_iou": 0.5,
        }
    },
    "torchvision": {
        "head": {
            "inclusive": False,
            "scales": False,
            "weighted": False,
            "preselect": "product",
            "root": True,
            "score": 0.2,
            "min_size": -1.0,
            "offset": 0.0,
            "integer_anchors": True,
        }
    },
}
"""Arguments by whose settings they are. mmdetection's are the head's own."""


@register("detector", "fcos")
def fcos(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    head: Options | None = None,
) -> OneStage:
    """FCOS.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        preset: `mmdetection` (its `center-normbbox-centeronreg-giou`), `journal` (the same with the journal
            paper's score), `conference` (the first paper's, mmdetection's plain one) or `torchvision`.
        head: arguments of `FCOSHead` that differ from the preset's.
    """
    options = {**of_preset(preset, _PRESETS)["head"], **(head or {})}
    neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="conv_p5_relu")
    levels = neck.out_channels, neck.out_strides
    return OneStage(backbone, neck, construct(FCOSHead, "head", *levels, num_classes, **options))
