"""The detectors: their forward is the diagram of their architecture."""

import abc
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from msefpn.config import Config
from msefpn.errors import UserError, unknown_name
from msefpn.models.backbone import Backbone
from msefpn.models.cascade import CascadeHead
from msefpn.models.fcos import FCOSHead
from msefpn.models.retina import RetinaHead
from msefpn.models.roi import RoIHead
from msefpn.models.rpn import RPN
from msefpn.necks import NECKS, Neck, Stack
from msefpn.structures import Detections, Targets

T = TypeVar("T")
RegionHead = TypeVar("RegionHead", RoIHead, CascadeHead)
DenseHead = TypeVar("DenseHead", RetinaHead, FCOSHead)


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

    @abc.abstractmethod
    def forward(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 RGB, padded at the right and at the bottom to multiples of 32.
            sizes: (B, 2) int64, height and width of each image inside the padded tensor, pixels.

        Returns:
            Boxes in pixels of the padded image.
        """

    @abc.abstractmethod
    def losses(self, images: Tensor, sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses of a batch by name, scalars; their sum is what training minimises."""

    def drop_training_parts(self) -> None:
        """Remove what only training looks at; saved weights do not hold it."""

    def pyramid(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The neck's maps of uint8 images (B, 3, H, W)."""
        maps: list[Tensor] = self.neck(self.backbone(self.normalise(images, sizes)))
        return maps

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation of the backbone's images; padding becomes zero."""
        rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]  # (B, H)
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]  # (B, W)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        normalised = (images.to(self.mean.dtype) - self.mean) * self.scale * inside
        return normalised.contiguous(memory_format=torch.channels_last)


def _side(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


class TwoStage(Detector, Generic[RegionHead]):
    """Region proposals on the pyramid, then one head, or a cascade of them, on each region."""

    def __init__(self, backbone: Backbone, neck: Neck, rpn: RPN, roi: RegionHead) -> None:
        super().__init__(backbone, neck)
        self.rpn = rpn
        self.roi: RegionHead = roi

    def drop_training_parts(self) -> None:
        """Remove the layers of consistent supervision."""
        if isinstance(self.roi, RoIHead):
            self.roi.auxiliary = None

    def forward(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect, see `Detector.forward`."""
        pyramid = self.pyramid(images, sizes)
        proposals = self.rpn(pyramid, sizes, _side(images))
        detections: Detections = self.roi(pyramid[: self.roi.levels], proposals, sizes)
        return detections

    def losses(self, images: Tensor, sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Losses of proposals and regions, see `Detector.losses`."""
        pyramid, aux = self.neck.forward_with_aux(self.backbone(self.normalise(images, sizes)))
        proposals, losses = self.rpn.losses(pyramid, sizes, _side(images), targets)
        pooled = pyramid[: self.roi.levels]
        if isinstance(self.roi, CascadeHead):
            return losses | self.roi.losses(pooled, proposals, sizes, targets)
        return losses | self.roi.losses(pooled, proposals, targets, aux.get("laterals"))[0]


class OneStage(Detector, Generic[DenseHead]):
    """One head on every cell of the pyramid."""

    def __init__(self, backbone: Backbone, neck: Neck, head: DenseHead) -> None:
        super().__init__(backbone, neck)
        self.head: DenseHead = head

    def forward(self, images: Tensor, sizes: Tensor) -> Detections:
        """Detect, see `Detector.forward`."""
        detections: Detections = self.head(self.pyramid(images, sizes), sizes, _side(images))
        return detections

    def losses(self, images: Tensor, sizes: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Losses of the head, see `Detector.losses`."""
        return self.head.losses(self.pyramid(images, sizes), sizes, _side(images), targets)


MakeNeck = Callable[..., Neck]
Options = Mapping[str, Any]

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "mmdetection": {
        "rpn": {},
        "roi": {},
        "retina": {},
        "retina_neck": {"extra_levels": "conv_c5"},
        "fcos": {},
    },
    "torchvision": {
        "rpn": {
            "proposals": (2000, 1000),
            "min_size": 1e-3,
            "low_quality_iou": 0.0,
            "reassign": False,
            "ignore_padding": False,
            "beta": 1 / 9,
            "clamp_both": False,
            "integer_anchors": True,
        },
        "roi": {"min_size": 1e-2, "sampling_ratio": 2, "aligned": False, "beta": 1 / 9, "clamp_both": False},
        "retina": {
            "reassign": False,
            "ignore_padding": False,
            "per_image": True,
            "detections": 300,
            "min_size": -1.0,
            "clamp_both": False,
            "integer_anchors": True,
        },
        "retina_neck": {"extra_levels": "conv_p5_relu"},
        "fcos": {"score": 0.2, "min_size": -1.0, "offset": 0.0, "integer_anchors": True},
    },
}
"""Constructor arguments by whose habits they follow. mmdetection's are the constructors' own defaults."""


def faster_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    rpn: Options | None = None,
    roi: Options | None = None,
) -> TwoStage[RoIHead]:
    """Faster R-CNN (arXiv 1506.01497) on a pyramid (arXiv 1612.03144).

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        preset: name in `PRESETS`.
        rpn: arguments of `RPN` that differ from the preset's.
        roi: arguments of `RoIHead` that differ from the preset's.
    """
    chosen = _preset(preset)
    neck = make_neck(start_level=0, extra_levels="pool")
    if roi and roi.get("consistent") and "laterals" not in neck.aux:
        raise ValueError("roi's consistent supervision needs a neck that gives its laterals, such as aug_fpn")
    return TwoStage(
        backbone,
        neck,
        _construct(RPN, "rpn", neck.out_channels, neck.out_strides, **chosen["rpn"] | dict(rpn or {})),
        _construct(RoIHead, "roi", *_pooled(backbone, neck), num_classes, **chosen["roi"] | dict(roi or {})),
    )


def cascade_rcnn(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    rpn: Options | None = None,
    roi: Options | None = None,
) -> TwoStage[CascadeHead]:
    """Cascade R-CNN (arXiv 1712.00726) on a pyramid, with mmdetection 2.x's settings.

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K, without background.
        rpn: arguments of `RPN` that differ from mmdetection's for a cascade.
        roi: arguments of `CascadeHead`.
    """
    neck = make_neck(start_level=0, extra_levels="pool")
    proposing = {"proposals": (2000, 1000), "border": 0.0, "beta": 1 / 9} | dict(rpn or {})
    return TwoStage(
        backbone,
        neck,
        _construct(RPN, "rpn", neck.out_channels, neck.out_strides, **proposing),
        _construct(CascadeHead, "roi", *_pooled(backbone, neck), num_classes, **dict(roi or {})),
    )


def _pooled(backbone: Backbone, neck: Neck) -> tuple[int, list[int]]:
    """Channels and strides of the levels that regions are pooled from: not the extra ones."""
    return neck.out_channels, neck.out_strides[: len(backbone.strides) - neck.start_level]


def retinanet(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    head: Options | None = None,
) -> OneStage[RetinaHead]:
    """RetinaNet (arXiv 1708.02002).

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        preset: name in `PRESETS`.
        head: arguments of `RetinaHead` that differ from the preset's.
    """
    chosen = _preset(preset)
    neck = make_neck(start_level=1, **chosen["retina_neck"])
    options = chosen["retina"] | dict(head or {})
    return OneStage(
        backbone,
        neck,
        _construct(RetinaHead, "head", neck.out_channels, neck.out_strides, num_classes, **options),
    )


def fcos(
    backbone: Backbone,
    make_neck: MakeNeck,
    num_classes: int,
    *,
    preset: str = "mmdetection",
    head: Options | None = None,
) -> OneStage[FCOSHead]:
    """FCOS (arXiv 2006.09214).

    Args:
        backbone: gives the maps.
        make_neck: builds the neck for them.
        num_classes: K; there is no background class.
        preset: name in `PRESETS`.
        head: arguments of `FCOSHead` that differ from the preset's.
    """
    chosen = _preset(preset)["fcos"] | dict(head or {})
    neck = make_neck(start_level=1, extra_levels="conv_p5_relu")
    return OneStage(
        backbone,
        neck,
        _construct(FCOSHead, "head", neck.out_channels, neck.out_strides, num_classes, **chosen),
    )


DETECTORS: dict[str, Callable[..., Detector]] = {
    "faster_rcnn": faster_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
}


def build(config: Config, classes: Sequence[str], category_ids: Sequence[int] | None = None) -> Detector:
    """Build a detector with random weights.

    Args:
        config: names and options of its parts.
        classes: names of the K classes.
        category_ids: their ids in the annotation file; None: 1..K.

    Raises:
        UserError: an unknown name or option.
    """
    check_neck(config.neck)
    if config.detector not in DETECTORS:
        raise unknown_name("detector", config.detector, DETECTORS)
    backbone = _construct(Backbone, "backbone_options", config.backbone, **config.backbone_options)
    make_neck = functools.partial(_make_neck, config, backbone)
    factory = DETECTORS[config.detector]
    detector = _construct(
        factory, "detector_options", backbone, make_neck, len(classes), **config.detector_options
    )
    detector.config = config
    detector.classes = tuple(classes)
    detector.category_ids = tuple(category_ids or range(1, len(classes) + 1))
    return detector.to(memory_format=torch.channels_last)


def _make_neck(config: Config, backbone: Backbone, **defaults: Any) -> Neck:
    """The neck, or stack of necks, of a configuration; the options are those of its first."""
    first, *others = config.neck.split("+")
    options = defaults | config.neck_options
    members: list[Neck] = []
    with torch.random.fork_rng(devices=[]):  # the same seed gives the heads the same weights on any neck
        members.append(
            _construct(NECKS[first], "neck_options", backbone.channels, backbone.strides, **options)
        )
        for name in others:
            below = members[-1]
            channels = [below.out_channels] * len(below.out_strides)
            members.append(_construct(NECKS[name], "neck", channels, below.out_strides, below.out_channels))
        return Stack(members) if others else members[0]


def check_neck(name: str) -> None:
    """Raise UserError if a neck's name, or a stack's, cannot be."""
    first, *others = name.split("+")
    for member in (first, *others):
        if member not in NECKS:
            raise unknown_name("neck", member, NECKS)
    if NECKS[first].on_top:
        raise UserError(f"neck '{name}': {first} reads another neck's pyramid: write fpn+{first}")
    for member in others:
        if not NECKS[member].on_top:
            raise UserError(f"neck '{name}': {member} reads a backbone's maps: it can only come first")


def _preset(name: str) -> dict[str, dict[str, Any]]:
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]


def _construct(make: Callable[..., T], what: str, *args: Any, **options: Any) -> T:
    """Call a constructor; options that it does not know, or refuses, are the user's mistake."""
    known = [p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY]
    positional = [p for p in inspect.signature(make).parameters if p not in known]
    for name in options:
        if name not in known and name not in positional[len(args) :]:
            raise unknown_name(f"key in {what}", name, known + positional[len(args) :])
    try:
        return make(*args, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from error
