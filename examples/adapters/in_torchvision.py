"""A pyramid of msefpn in torchvision's Faster R-CNN and RetinaNet.

torchvision's detectors take a body that returns maps by name and says how many channels they have.
"""

from collections import OrderedDict

import timm
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from msefpn.necks import MSEFPN


class Body(nn.Module):
    """A timm backbone and MSE-FPN, as torchvision's detectors take them."""

    def __init__(self, backbone: str, *, pretrained: bool, out_channels: int = 256, **levels: object) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, features_only=True, pretrained=pretrained)
        strides = self.backbone.feature_info.reduction()[-4:]
        self.neck = MSEFPN(self.backbone.feature_info.channels()[-4:], strides, out_channels, **levels)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the pyramid of images (B, 3, H, W), by name, finest first."""
        pyramid = self.neck(self.backbone(images)[-4:])
        return OrderedDict((str(level), x) for level, x in enumerate(pyramid))


def anchors(strides: list[int], scales: tuple[float, ...]) -> AnchorGenerator:
    """Anchors of three shapes on each level, sides `scale * stride`."""
    sizes = tuple(tuple(round(scale * stride) for scale in scales) for stride in strides)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(strides))


def faster_rcnn(num_classes: int, backbone: str = "resnet50", *, pretrained: bool = True) -> FasterRCNN:
    """torchvision's Faster R-CNN on MSE-FPN; `num_classes` with the background, as torchvision counts."""
    body = Body(backbone, pretrained=pretrained, extra_levels="pool")
    return FasterRCNN(
        body,
        num_classes,
        rpn_anchor_generator=anchors(body.neck.out_strides, (8,)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2),
    )


def retinanet(num_classes: int, backbone: str = "resnet50", *, pretrained: bool = True) -> RetinaNet:
    """torchvision's RetinaNet on MSE-FPN, levels of stride 8 to 128."""
    body = Body(backbone, pretrained=pretrained, start_level=1, extra_levels="conv_p5_relu")
    generator = anchors(body.neck.out_strides, (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)))
    return RetinaNet(body, num_classes, anchor_generator=generator)
