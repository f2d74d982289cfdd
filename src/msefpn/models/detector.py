"""The detectors: their forward is the diagram of their architecture."""

import abc
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.config import Config
from msefpn.models.backbone import Backbone
from msefpn.models.cascade import CascadeHead
from msefpn.models.fcos import FCOSHead
from msefpn.models.mask import MaskHead
from msefpn.models.retina import RetinaHead
from msefpn.models.roi import RoIHead
from msefpn.models.rpn import RPN
from msefpn.models.ssd import SSDHead
from msefpn.models.yolo import YOLOHead
from msefpn.necks import Neck
from msefpn.structures import Detections, Proposals, Targets

RegionHead = TypeVar("RegionHead", RoIHead, CascadeHead)
DenseHead = TypeVar("DenseHead", RetinaHead, FCOSHead, SSDHead, YOLOHead)


class Detector(nn.Module, abc.ABC):
    """Images to detections, or to losses.

    Attributes:
        config: what it was built from.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.
    """

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, neck: Neck) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    @property
    def takes_proposals(self) -> bool:
        """Whether it needs proposals with its images."""
        return self.config.takes_proposals

    @property
    def learns_masks(self) -> bool:
        """Whether it draws masks."""
        return self.config.learns_masks

    @abc.abstractmethod
    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 RGB, padded at the right and at the bottom to multiples of 32.
            sizes: (B, 2) int64, height and width of each image inside the padded tensor, pixels.
            proposals: the regions to look at, for a two-stage detector that has no RPN; no other reads them.

        Returns:
            Boxes in pixels of the padded image.
        """

    @abc.abstractmethod
    def losses(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch by name, scalars; their sum is what training minimises."""

    def drop_training_parts(self) -> None:
        """Remove what only training looks at; saved weights do not hold it."""

    def pyramid(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The neck's maps of uint8 images (B, 3, H, W)."""
        maps: list[Tensor] = self.neck(self.backbone(self.normalise(images, sizes)))
        return maps

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation of the backbone's images; padding becomes zero."""
        height, width = images.shape[2:]
        layout = torch.channels_last
        rows = torch.arange(height, device=images.device) < sizes[:, :1]  # (B, H)
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # (B, W)
        # As wide as the images: a loop over three channels, pixel by pixel, takes several times as long.
        mean = self.mean.expand(1, -1, 1, width).contiguous(memory_format=layout)
        scale = (self.scale * columns[:, None, None, :]).contiguous(memory_format=layout)
        pixels = images.contiguous(memory_format=layout).to(self.mean.dtype, copy=True)
        return pixels.sub_(mean).mul_(scale).mul_(rows[:, None, :, None].to(pixels.dtype))


def _side(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


class TwoStage(Detector, Generic[RegionHead]):
    """Region proposals on the pyramid, or given ones, then one head, or a cascade of them, on each region.

    Args:
        backbone: gives the maps.
        neck: makes a pyramid of them.
        rpn: proposes regions; None: they are given (Fast R-CNN).
        roi: classifies and refines them.
        mask: draws the masks of what was found (Mask R-CNN); None: there are none.
    """

    def __init__(
        self, backbone: Backbone, neck: Neck, rpn: RPN | None, roi: RegionHead, mask: MaskHead | None = None
    ) -> None:
        super().__init__(backbone, neck)
        self.rpn = rpn
        self.roi: RegionHead = roi
        self.mask = mask

    def drop_training_parts(self) -> None:
        """Remove the layers of consistent supervision."""
        if isinstance(self.roi, RoIHead):
            self.roi.auxiliary = None

    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `Detector.forward`."""
        pyramid = self.pyramid(images, sizes)
        if self.rpn is not None:
            proposals = self.rpn(pyramid, sizes, _side(images))
        pooled = pyramid[: self.roi.levels]
        detections: Detections = self.roi(pooled, _required(proposals), sizes)
        return detections if self.mask is None else self._with_masks(self.mask, pooled, detections)

    def _with_masks(self, head: MaskHead, pooled: list[Tensor], found: Detections) -> Detections:
        """Draw masks; in eager mode none for the places that hold nothing, which come last."""
        count = most = found.valid.shape[1]
        if not torch.compiler.is_compiling():
            most = max(1, int(found.valid.sum(dim=1).max()))
        masks = head(pooled, found.boxes[:, :most], found.labels[:, :most])
        return found._replace(masks=F.pad(masks, (0, 0, 0, 0, 0, count - most)))

    def losses(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None = None
    ) -> dict[str, Tensor]:
        """Losses of proposals, regions and masks, see `Detector.losses`."""
        pyramid, aux = self.neck.forward_with_aux(self.backbone(self.normalise(images, sizes)))
        losses: dict[str, Tensor] = {}
        if self.rpn is not None:
            proposals, losses = self.rpn.losses(pyramid, sizes, _side(images), targets)
        pooled = pyramid[: self.roi.levels]
        if isinstance(self.roi, CascadeHead):
            return losses | self.roi.losses(pooled, _required(proposals), sizes, targets)
        found, trained = self.roi.losses(pooled, _required(proposals), targets, aux.get("laterals"))
        if self.mask is not None:
            found |= self.mask.losses(pooled, trained, targets)
        return losses | found


def _required(proposals: Proposals | None) -> Proposals:
    if proposals is None:
        raise ValueError("Fast R-CNN looks at given regions: pass proposals")
    return proposals


class OneStage(Detector, Generic[DenseHead]):
    """One head on every cell of the pyramid."""

    def __init__(self, backbone: Backbone, neck: Neck, head: DenseHead) -> None:
        super().__init__(backbone, neck)
        self.head: DenseHead = head

    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `Detector.forward`."""
        detections: Detections = self.head(self.pyramid(images, sizes), sizes, _side(images))
        return detections

    def losses(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None = None
    ) -> dict[str, Tensor]:
        """Losses of the head, see `Detector.losses`."""
        return self.head.losses(self.pyramid(images, sizes), sizes, _side(images), targets)
