"""A pyramid of msefpn on a backbone of transformers.

transformers.AutoBackbone.from_pretrained(NAME, out_features=[...]) gives the backbone; it knows the channels
of its maps and not their strides, so these are looked at once.
"""

import torch
from torch import Tensor, nn

from msefpn.necks import MSEFPN


class Pyramid(nn.Module):
    """A backbone of transformers with MSE-FPN.

    Args:
        backbone: with `out_features`, finest first, each of twice the stride of the one before.
        out_channels: channels of the pyramid.
        options: of `MSEFPN`.
    """

    def __init__(self, backbone: nn.Module, out_channels: int = 256, **options: object) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, 128, 128)).feature_maps
        strides = [128 // x.shape[-1] for x in maps]
        self.neck = MSEFPN(list(backbone.channels), strides, out_channels, **options)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """The pyramid of images (B, 3, H, W), as the backbone's image processor prepares them."""
        return self.neck(list(self.backbone(pixel_values).feature_maps))


def from_pretrained(name: str = "microsoft/resnet-50") -> Pyramid:
    """A ResNet of the hub; its stages have strides 4 to 32."""
    from transformers import AutoBackbone  # noqa: PLC0415  (not a dependency of msefpn)

    return Pyramid(AutoBackbone.from_pretrained(name, out_features=["stage1", "stage2", "stage3", "stage4"]))
