"""The two kinds of detector: their forward is the diagram of their architecture.

A detector of your own is a function under `@register("detector", NAME)`, called with

    (backbone: Backbone, make_neck: MakeNeck, num_classes: int, **options) -> Detector

where `options` are the configuration's `detector_options`. A head of your own goes into a detector:

    @register("detector", "mine")
    def mine(backbone, make_neck, num_classes, *, head=None):
        neck = make_neck(start_level=start_at(backbone, stride=8), extra_levels="conv_p5_relu")
        levels = neck.out_channels, neck.out_strides
        return OneStage(backbone, neck, MyHead(*levels, num_classes, **(head or {})))
"""

import abc
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.config import Config
from msefpn.models.backbone import Backbone
from msefpn.models.blank import real_values
from msefpn.models.convolution import convolutions
from msefpn.models.hub import OnHub
from msefpn.models.matching import SampledRegions
from msefpn.necks import Neck
from msefpn.structures import Detections, Proposals, Targets

Losses = dict[str, Tensor]
"""Losses by name, scalars."""
Size = tuple[int, int]
"""Height and width, pixels."""
Method = TypeVar("Method", bound=Callable[..., Any])


class MakeNeck(Protocol):
    """Builds the configured neck on the backbone; called by a detector's factory."""

    def __call__(self, *, start_level: int, extra_levels: str) -> Neck:
        """Build a neck.

        Args:
            start_level: index of the backbone's first map that becomes a level of the pyramid.
            extra_levels: coarser levels on top: `none`, `pool`, `conv_c5`, `conv_c5_relu` or `conv_p5_relu`.
        """


class DenseHead(Protocol):
    """A head that predicts in every cell of a pyramid: a module with `forward` and `losses`.

    It is built for a pyramid of `neck.out_channels` channels and the strides `neck.out_strides`. What only
    training reads of it, it names in an attribute `training_only`, see `Detector.training_parts`.
    """

    def __call__(self, pyramid: list[Tensor], sizes: Tensor, image: Size) -> Detections:
        """Detect; the module's `forward`.

        Args:
            pyramid: maps (B, C, H_i, W_i), finest first.
            sizes: (B, 2) int64, height and width of each image, pixels.
            image: height and width of the padded image, pixels.
        """

    def losses(self, pyramid: list[Tensor], sizes: Tensor, image: Size, targets: Targets) -> Losses:
        """The losses of a batch. They stay finite and connected to all parameters without any object."""


class RegionHead(Protocol):
    """A head that classifies and refines regions: a module with `levels`, `forward` and `losses`."""

    levels: int
    """How many of the pyramid's levels it pools from, the finest first."""

    def __call__(self, pyramid: list[Tensor], proposals: Proposals, sizes: Tensor) -> Detections:
        """Detect; the module's `forward`.

        Args:
            pyramid: maps (B, C, H_i, W_i), one for each of `levels`, finest first.
            proposals: R regions an image.
            sizes: (B, 2) int64, height and width of each image, pixels.
        """

    def losses(
        self,
        pyramid: list[Tensor],
        proposals: Proposals,
        sizes: Tensor,
        targets: Targets,
        aux: Mapping[str, list[Tensor]],
    ) -> tuple[Losses, SampledRegions]:
        """The losses of a batch, and the regions that they are of, for a mask head.

        `aux` are the maps by name that the neck gives for training, see `Neck.forward_with_aux`.
        """


class ProposalHead(Protocol):
    """A head that proposes regions: a module with `forward` and `losses`, such as `RPN`."""

    def __call__(self, pyramid: list[Tensor], sizes: Tensor, image: Size) -> Proposals:
        """Propose regions; the module's `forward`. Arguments as in `DenseHead`."""

    def losses(
        self, pyramid: list[Tensor], sizes: Tensor, image: Size, targets: Targets
    ) -> tuple[Proposals, Losses]:
        """Regions for training, without a gradient, and the losses of a batch."""


class RegionMaskHead(Protocol):
    """A head that draws masks in boxes: a module with `forward` and `losses`, such as `MaskHead`."""

    def __call__(self, pyramid: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Masks (B, D, M, M), 0..1, of boxes (B, D, 4), pixels, and labels (B, D); the module's `forward`."""

    def losses(self, pyramid: list[Tensor], regions: SampledRegions, targets: Targets) -> Losses:
        """The losses of the region head's positive regions."""


class Detector(nn.Module, OnHub, abc.ABC):
    """Images to detections, or to losses.

    Attributes:
        config: what it was built from.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.
        convolution: how `TwoStage` and `OneStage` convolve on the CPU, one of `msefpn.config.CONVOLUTIONS`.
    """

    config: Config
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    convolution: str = "auto"
    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, neck: Neck) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        with real_values():
            mean, std = (torch.tensor(x).view(3, 1, 1) for x in (backbone.mean, backbone.std))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("scale", 1 / std, persistent=False)

    @abc.abstractmethod
    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 RGB, padded at the right and at the bottom to multiples of 32.
            sizes: (B, 2) int64, height and width of each image inside the padded tensor, pixels.
            proposals: the regions to classify, for a detector that `takes_proposals`; others ignore them.

        Returns:
            Boxes in pixels of the padded image.
        """

    @abc.abstractmethod
    def losses(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None = None
    ) -> Losses:
        """The losses of a batch by name, scalars; their sum is what training minimises."""

    @property
    def learns_masks(self) -> bool:
        """Whether it needs the objects' masks in training and gives masks."""
        return False

    @property
    def takes_proposals(self) -> bool:
        """Whether it must be given regions."""
        return False

    def training_parts(self) -> list[str]:
        """Names of the submodules that only training reads; saved weights do not hold them.

        They are those that a module lists in its attribute `training_only`.
        """
        return [
            f"{name}.{part}" if name else part
            for name, module in self.named_modules()
            for part in getattr(module, "training_only", ())
            if getattr(module, part) is not None
        ]

    def drop_training_parts(self) -> None:
        """Remove what only training reads."""
        for name in self.training_parts():
            parent, _, part = name.rpartition(".")
            setattr(self.get_submodule(parent), part, None)

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


def _side(images: Tensor) -> Size:
    return images.shape[2], images.shape[3]


def _choosing_convolutions(method: Method) -> Method:
    """Let a method of a detector do its convolutions as the detector's attribute says."""

    @functools.wraps(method)
    def run(self: Detector, images: Tensor, *args: Any, **more: Any) -> Any:
        if torch.compiler.is_compiling():
            return method(self, images, *args, **more)
        with convolutions(self.convolution, images.device):
            return method(self, images, *args, **more)

    return cast("Method", run)


class TwoStage(Detector):
    """Region proposals on the pyramid, or given ones, then one head, or a cascade of them, on each region.

    Args:
        backbone: gives the maps.
        neck: makes a pyramid of them.
        rpn: proposes regions; None: they are given (Fast R-CNN).
        roi: classifies and refines them.
        mask: draws the masks of the detections (Mask R-CNN); None: there are none.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: ProposalHead | None,
        roi: RegionHead,
        mask: RegionMaskHead | None = None,
    ) -> None:
        super().__init__(backbone, neck)
        self.rpn = rpn
        self.roi = roi
        self.mask = mask

    @property
    def learns_masks(self) -> bool:
        """Whether it has a mask head."""
        return self.mask is not None

    @property
    def takes_proposals(self) -> bool:
        """Whether it has no part that proposes regions."""
        return self.rpn is None

    @_choosing_convolutions
    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `Detector.forward`."""
        pooled, detections = self._regions(images, sizes, proposals)
        return detections if self.mask is None else _with_masks(self.mask, pooled, detections)

    @_choosing_convolutions
    def without_masks(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect without drawing masks; as `forward` otherwise."""
        return self._regions(images, sizes, proposals)[1]

    @_choosing_convolutions
    def masks_of(self, images: Tensor, sizes: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Masks (B, D, M, M), 0..1, in boxes (B, D, 4), pixels of the padded image, of labels (B, D)."""
        if self.mask is None:
            raise ValueError("this detector draws no masks")
        return self.mask(self.pyramid(images, sizes)[: self.roi.levels], boxes, labels)

    def _regions(
        self, images: Tensor, sizes: Tensor, proposals: Proposals | None
    ) -> tuple[list[Tensor], Detections]:
        """The maps that regions are pooled from, and the detections."""
        pyramid = self.pyramid(images, sizes)
        if self.rpn is not None:
            proposals = self.rpn(pyramid, sizes, _side(images))
        pooled = pyramid[: self.roi.levels]
        return pooled, self.roi(pooled, _required(proposals), sizes)

    @_choosing_convolutions
    def losses(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None = None
    ) -> Losses:
        """Losses of proposals, regions and masks, see `Detector.losses`."""
        pyramid, aux = self.neck.forward_with_aux(self.backbone(self.normalise(images, sizes)))
        losses: Losses = {}
        if self.rpn is not None:
            proposals, losses = self.rpn.losses(pyramid, sizes, _side(images), targets)
        pooled = pyramid[: self.roi.levels]
        of_regions, regions = self.roi.losses(pooled, _required(proposals), sizes, targets, aux)
        losses |= of_regions
        if self.mask is not None:
            losses |= self.mask.losses(pooled, regions, targets)
        return losses


def _with_masks(head: RegionMaskHead, pooled: list[Tensor], detections: Detections) -> Detections:
    """Draw masks; in eager mode none for the places that hold nothing, which come last."""
    count = most = detections.valid.shape[1]
    if not torch.compiler.is_compiling():
        most = max(1, int(detections.valid.sum(dim=1).max()))
    masks = head(pooled, detections.boxes[:, :most], detections.labels[:, :most])
    return detections._replace(masks=F.pad(masks, (0, 0, 0, 0, 0, count - most)))


def _required(proposals: Proposals | None) -> Proposals:
    if proposals is None:
        raise ValueError("this detector classifies given regions: pass proposals")
    return proposals


class OneStage(Detector):
    """One head on every cell of the pyramid."""

    def __init__(self, backbone: Backbone, neck: Neck, head: DenseHead) -> None:
        super().__init__(backbone, neck)
        self.head = head

    @_choosing_convolutions
    def forward(self, images: Tensor, sizes: Tensor, proposals: Proposals | None = None) -> Detections:
        """Detect, see `Detector.forward`."""
        return self.head(self.pyramid(images, sizes), sizes, _side(images))

    @_choosing_convolutions
    def losses(
        self, images: Tensor, sizes: Tensor, targets: Targets, proposals: Proposals | None = None
    ) -> Losses:
        """Losses of the head, see `Detector.losses`."""
        return self.head.losses(self.pyramid(images, sizes), sizes, _side(images), targets)


def start_at(backbone: Backbone, stride: int) -> int:
    """Index of the backbone's first map of at least this stride, for `MakeNeck`."""
    return sum(s < stride for s in backbone.strides)


def pooled_levels(backbone: Backbone, neck: Neck) -> tuple[int, list[int]]:
    """Channels and strides of the levels that regions are pooled from: not the extra ones."""
    return neck.out_channels, [s for s in neck.out_strides if s <= backbone.strides[-1]]
