"""Augmentation and resizing on torchvision.transforms.v2; images stay uint8 throughout.

A transform takes and returns (image, target): a tv_tensors.Image (3, H, W) uint8, and a dictionary with
`boxes`, tv_tensors.BoundingBoxes (G, 4) xyxy in pixels of that image, `labels` (G,) int64, and `masks`,
tv_tensors.Mask (G, H, W) uint8, where the detector learns masks. Boxes with the label `PROPOSAL` are
proposals, not objects.

An augmentation is one of these, registered under a name or passed from Python:

    from msefpn.plugins import register

    @register("augmentation", "turned")
    def turned(image, target):            # a transform: resizing to the run's size is added after it
        ...

    @register("augmentation", "sliced")
    def sliced(size):                     # size: longest and shortest side, pixels
        return v2.Compose([...])          # a transform that resizes too

A class is called with the size if it takes one, else without arguments; one with an argument `antialias` is
given the run's, see `FitResize`. With an attribute `min_crop` (the least part of each side that its crops
keep, 1 where it does not crop), large JPEG files may be decoded at a reduced size; without it they are
decoded whole. One with an attribute `other_images`, a number, is called as (image, target, others): a
sequence of so many pairs (image, target) of the training set, each read when it is taken from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from msefpn import plugins
from msefpn.data.checked import CheckedTransform, Transform
from msefpn.data.images import fitted_size
from msefpn.data.mixing import Example, blended, centred_in, composed, window_of
from msefpn.errors import UserError

PROPOSAL = -1
"""Label of a box that is a proposal, not an object."""

_CROP = 0.5
"""The least part of each side that a crop keeps."""
_MARGIN = 1.5
"""An image that is decoded reduced is at least this many times its final size: resizing still smooths it."""


class FitResize(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resize, ratio kept, to fit into `long` x `short` pixels, times a factor drawn from `scales`.

    Bilinearly: with `antialias` over all pixels that a new one covers, without it between the four nearest
    ones, as OpenCV's `INTER_LINEAR` does, to one grey level of 255.
    """

    def __init__(
        self, long: int, short: int, scales: tuple[float, float] = (1.0, 1.0), *, antialias: bool = True
    ) -> None:
        super().__init__()
        self.long = long
        self.short = short
        self.scales = scales
        self.antialias = antialias

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor and compute the size."""
        height, width = v2.query_size(flat_inputs)
        low, high = self.scales
        scale = low + (high - low) * torch.rand(()).item() if low < high else high
        return {"size": list(fitted_size(height, width, self.long, self.short, scale))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image or one set of boxes."""
        return self._call_kernel(functional.resize, inpt, params["size"], antialias=self.antialias)


class ObjectCrop(v2.RandomIoUCrop):  # type: ignore[misc]  # likewise
    """SSD's crop, chosen by the objects alone; proposals are cropped with them."""

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Crop an image and what is on it."""
        boxes = target["boxes"]
        objects = tv_tensors.wrap(boxes[target["labels"] != PROPOSAL], like=boxes)
        params: dict[str, Any] = self.make_params([image, objects])
        if params:
            window = params["top"], params["left"], params["height"], params["width"]
            params["is_within_crop_area"] = centred_in(boxes, window)
        placed = {key: value for key, value in target.items() if isinstance(value, tv_tensors.TVTensor)}
        cropped = {key: self.transform(value, params) for key, value in placed.items()}
        return self.transform(image, params), target | cropped


@plugins.register("augmentation", "none")
class Plain(v2.Compose):  # type: ignore[misc]  # likewise
    """Resize."""

    min_crop = 1.0

    def __init__(self, size: tuple[int, int], *, antialias: bool = True) -> None:
        super().__init__([FitResize(*size, antialias=antialias)])


@plugins.register("augmentation", "paper")
class Flipped(v2.Compose):  # type: ignore[misc]  # likewise
    """Resize, and flip horizontally half the time."""

    min_crop = 1.0

    def __init__(self, size: tuple[int, int], *, antialias: bool = True) -> None:
        super().__init__([FitResize(*size, antialias=antialias), v2.RandomHorizontalFlip(0.5)])


@plugins.register("augmentation", "multiscale")
class MultiScale(v2.Compose):  # type: ignore[misc]  # likewise
    """Shrink by 0.6 to 1, uniformly (mmdetection's `range` mode at 1333 x 480..800), and flip."""

    min_crop = 1.0

    def __init__(self, size: tuple[int, int], *, antialias: bool = True) -> None:
        resize = FitResize(*size, (0.6, 1.0), antialias=antialias)
        super().__init__([resize, v2.RandomHorizontalFlip(0.5)])


@plugins.register("augmentation", "strong")
class Strong(v2.Compose):  # type: ignore[misc]  # likewise
    """For small sets without a fixed orientation, such as a microscope's: IoU crops half the time (SSD, arXiv
    1512.02325), shrinking by 0.8 to 1, flips both ways, colour distortion.
    """

    min_crop = _CROP

    def __init__(self, size: tuple[int, int], *, antialias: bool = True) -> None:
        super().__init__(
            [
                v2.RandomApply([ObjectCrop(min_scale=_CROP)], p=0.5),
                FitResize(*size, scales=(0.8, 1.0), antialias=antialias),
                *_flips_and_colours(),
            ]
        )


@plugins.register("augmentation", "mosaic")
class Mosaic(nn.Module):
    """`strong`, or half the time four images in one (YOLOv4, arXiv 2004.10934, section 3.3): each is shrunk
    by 0.5 to 1, and a part of it, chosen at random, fills a corner. They meet within the middle 40 % of each
    side. Then flips and colours as in `strong`.
    """

    min_crop = _CROP
    other_images = 3

    def __init__(self, size: tuple[int, int], *, antialias: bool = True) -> None:
        super().__init__()
        self.size = size
        self.alone = Strong(size, antialias=antialias)
        self.resize = FitResize(*size, scales=(0.5, 1.0), antialias=antialias)
        self.finish = v2.Compose(_flips_and_colours())

    def forward(self, image: Any, target: dict[str, Any], others: Sequence[Example]) -> Example:
        """Transform an image alone, or with three others."""
        found: Example
        if torch.rand(()).item() < 0.5:
            found = self.alone(image, target)
            return found
        height, width = fitted_size(image.shape[-2], image.shape[-1], *self.size)
        down, right = (torch.rand(2) * 0.4 + 0.3).tolist()
        top, left = max(1, round(down * height)), max(1, round(right * width))
        parts = []
        for at, (one, on_it) in enumerate([(image, target), *others]):
            below, beside = divmod(at, 2)
            room = height - top if below else top, width - left if beside else left
            shrunk, on_shrunk = self.resize(one, on_it)
            part = window_of(shrunk, on_shrunk, room)
            corner = top if below else top - part[0].shape[-2], left if beside else left - part[0].shape[-1]
            parts.append((*part, corner))
        found = self.finish(*composed(parts, (height, width)))
        return found


@plugins.register("augmentation", "mixup")
class MixUp(nn.Module):
    """`strong`, and half the time the mean of two images with the objects of both (arXiv 1710.09412, for
    detectors arXiv 1902.04103): the second is shrunk until it fits on the first.
    """

    min_crop = _CROP
    other_images = 1

    def __init__(self, size: tuple[int, int], *, antialias: bool = True) -> None:
        super().__init__()
        self.strong = Strong(size, antialias=antialias)
        self.finish = v2.SanitizeBoundingBoxes(min_size=1)  # the second image is shrunk once more
        self.antialias = antialias

    def forward(self, image: Any, target: dict[str, Any], others: Sequence[Example]) -> Example:
        """Transform an image alone, or with another."""
        first: Example = self.strong(image, target)
        if torch.rand(()).item() < 0.5:
            return first
        both = blended(first, self.strong(*others[0]), antialias=self.antialias)
        found: Example = self.finish(*both)
        return found


def _flips_and_colours() -> list[Any]:
    """What `strong` does to an image of the final size; boxes without area are removed."""
    return [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomPhotometricDistort(p=0.5),
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(min_size=1),
    ]


def eval_transform(size: tuple[int, int], *, antialias: bool = True) -> Transform:
    """Resize to fit into `size` (longest, shortest side; pixels)."""
    return FitResize(*size, antialias=antialias)


def train_transform(augment: str, size: tuple[int, int], *, antialias: bool = True) -> Transform:
    """Build the augmentation named `augment`; `size` is (longest, shortest side), pixels.

    `antialias`, see `FitResize`, is passed to those that take it, and else used where resizing is added.
    Raises UserError for an unknown name, or a plug-in that cannot be built.
    """
    transform, resizes = _build(augment, size, antialias)
    if plugins.known("augmentation")[augment].origin == plugins.OURS:
        return transform
    return CheckedTransform(augment, transform, None if resizes else FitResize(*size, antialias=antialias))


def decoded_fit(augment: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """Longest and shortest side that an image, decoded reduced, must still fill; None: decode it whole."""
    transform, _ = _build(augment, size)
    registered = plugins.find("augmentation", augment)
    min_crop = getattr(transform, "min_crop", getattr(registered, "min_crop", None))
    return None if min_crop is None else reduced_fit(size, min_crop)


def reduced_fit(size: tuple[int, int], min_crop: float = 1.0) -> tuple[int, int]:
    """`decoded_fit` for crops that keep at least this part of each side."""
    return round(size[0] * _MARGIN / min_crop), round(size[1] * _MARGIN / min_crop)


def _build(augment: str, size: tuple[int, int], antialias: bool = True) -> tuple[Transform, bool]:
    """The transform of an augmentation, and whether it resizes to the run's size itself."""
    registered = plugins.find("augmentation", augment)
    if isinstance(registered, nn.Module):  # an object, such as v2.Compose, not a class
        return registered, False
    parameters = list(inspect.signature(registered).parameters.values())
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [item for item in parameters if item.kind in places and item.default is item.empty]
    takes_size = len(required) == 1 or any(item.name == "size" for item in parameters)
    several = len(required) > 1 or any(item.kind is item.VAR_POSITIONAL for item in parameters)
    if several and not takes_size and not isinstance(registered, type):
        return registered, False  # a function of image and target
    try:
        options = {"antialias": antialias} if any(item.name == "antialias" for item in parameters) else {}
        transform = registered(size, **options) if takes_size else registered(**options)
    except TypeError as error:
        raise UserError(
            f"augmentation '{augment}' cannot be built ({error}): pass an object instead of its class, or a "
            "function that takes the size and returns the transform"
        ) from None
    if not callable(transform):
        raise UserError(
            f"augmentation '{augment}' gives a {type(transform).__name__}, not a transform: return one"
        )
    return transform, takes_size
