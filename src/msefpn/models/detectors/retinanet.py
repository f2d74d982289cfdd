"""RetinaNet (Lin et al., arXiv 1708.02002)."""

from msefpn.models.backbone import Backbone
from msefpn.models.construct import Options, construct, of_preset
from msefpn.models.detectors.base import MakeNeck, OneStage, start_at
from msefpn.models.retina import RetinaHead
from msefpn.plugins import register

_PRESETS: dict[str, dict[str, Options]] = {
    "mmdetection": {"neck": {"extra_levels": "conv_c5"}, "head": {}},
    "torchvision": {
        "neck": {"extra_levels": "conv_p5_relu"},
        "head": {
            "reassign": False,
            "ignore_padding": False,
            "per_image": True,
            "max_per_image": 300,
            "min_size": -1.0,
            "clamp_both": False,
            "integer_anchors": True,
        },
    },
}
"""Arguments by whose defaults they are. mmdetection's are the head's own."""


@register("detector", "retinanet")
def retinanet(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    head: Options | None = None,
) -> OneStage:
    """RetinaNet.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        preset: `mmdetection` or `torchvision`.
        head: arguments of `RetinaHead` that differ from the preset's.
    """
    chosen = of_preset(preset, _PRESETS)
    neck = make_neck(start_level=start_at(backbone, stride=8), **chosen["neck"])
    options = {**chosen["head"], **(head or {})}
    levels = neck.out_channels, neck.out_strides
    return OneStage(backbone, neck, construct(RetinaHead, "head", *levels, num_classes, **options))
