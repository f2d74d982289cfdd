"""A backbone: any module that gives maps, here torchvision's ResNet-18."""

import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from msefpn.plugins import register


@register("backbone", "torchvision_resnet18")
def resnet18(weights: str | None = None) -> nn.Module:
    """ResNet-18 with its four maps.

    Args:
        weights: torchvision's name of weights, such as `DEFAULT`; None: random ones.
    """
    layers = {f"layer{number}": str(number) for number in range(1, 5)}
    body = create_feature_extractor(torchvision.models.resnet18(weights=weights), layers)
    body.channels, body.strides = [64, 128, 256, 512], [4, 8, 16, 32]
    body.stages = ["conv1", "bn1", *layers]
    return body
