"""A pyramid of msefpn on any timm backbone, in a model of your own: one that classifies an image."""

import timm
import torch
from torch import Tensor, nn

from msefpn.necks import MSEFPN


class PyramidClassifier(nn.Module):
    """Score each class in each cell of each level, and take the best cell."""

    def __init__(self, num_classes: int, backbone: str = "resnet50", *, pretrained: bool = True) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, features_only=True, pretrained=pretrained)
        about = self.backbone.feature_info
        self.used = [index for index, stride in enumerate(about.reduction()) if stride >= 4]
        channels = [about.channels()[index] for index in self.used]
        strides = [about.reduction()[index] for index in self.used]
        self.neck = MSEFPN(channels, strides, out_channels=128, preset="lean")
        self.head = nn.Conv2d(self.neck.out_channels, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, num_classes) of images (B, 3, H, W), normalised as the backbone needs it."""
        features = self.backbone(images)
        pyramid = self.neck([features[index] for index in self.used])
        return torch.stack([self.head(x).amax(dim=(2, 3)) for x in pyramid]).amax(dim=0)
