"""Augmentation and resizing on torchvision.transforms.v2; images stay uint8 throughout.

A transform takes and returns (image, {"boxes": ..., "labels": ...}): a tv_tensors.Image (3, H, W) uint8,
tv_tensors.BoundingBoxes (G, 4) xyxy in pixels of that image, and labels (G,) int64.
"""

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from msefpn.errors import unknown_name
from msefpn.plugins import register

PROPOSAL = -1
"""Label of a box that is a given region and no object."""

_CROP = 0.5
"""The least part of each side that a crop keeps."""
_MARGIN = 1.5
"""An image decoded reduced is at least so many times its final size: resizing must still smooth it."""


def fitted_size(height: int, width: int, long: int, short: int, scale: float = 1.0) -> tuple[int, int]:
    """Height and width that fit into long x short, ratio kept, rounded as mmcv's `rescale_size` does."""
    factor = scale * min(long / max(height, width), short / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


class FitResize(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resize, ratio kept, to fit into `long` x `short` pixels, times a factor drawn from `scales`."""

    def __init__(self, long: int, short: int, scales: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.long = long
        self.short = short
        self.scales = scales

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor and compute the size."""
        height, width = v2.query_size(flat_inputs)
        low, high = self.scales
        scale = low + (high - low) * torch.rand(()).item() if low < high else high
        return {"size": list(fitted_size(height, width, self.long, self.short, scale))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one image or one set of boxes."""
        return self._call_kernel(functional.resize, inpt, params["size"], antialias=True)


class ObjectCrop(v2.RandomIoUCrop):  # type: ignore[misc]  # likewise
    """SSD's crop, chosen by the objects; given regions are cut with them and have no say."""

    def forward(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Crop an image and what is on it."""
        boxes = target["boxes"]
        objects = tv_tensors.wrap(boxes[target["labels"] != PROPOSAL], like=boxes)
        params: dict[str, Any] = self.make_params([image, objects])
        if params:
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([params["left"], params["top"]])
            inside = (centre > 0) & (centre < torch.tensor([params["width"], params["height"]]))
            params["is_within_crop_area"] = inside.all(dim=1)
        placed = {key: value for key, value in target.items() if isinstance(value, tv_tensors.TVTensor)}
        cropped = {key: self.transform(value, params) for key, value in placed.items()}
        return self.transform(image, params), target | cropped


def eval_transform(size: tuple[int, int]) -> v2.Transform:
    """Resize to fit into `size` (longest, shortest side; pixels)."""
    return FitResize(*size)


def train_transform(augment: str, size: tuple[int, int]) -> v2.Transform:
    """Build the augmentation named `augment`; `size` is (longest, shortest side), pixels.

    none: resize. paper: and flip sideways, half the time. multiscale: and shrink by 0.6 to 1, uniformly
    (mmdetection's `range` mode at 1333 x 480..800). strong: for small sets without a fixed up, like those of
    a microscope: IoU crops half the time (SSD, arXiv 1512.02325), shrinking by 0.8 to 1, flips both ways,
    colour distortion.
    Raises UserError for another name.
    """
    if augment not in _PRESETS:
        raise unknown_name("augment", augment, _PRESETS)
    return v2.Compose(_PRESETS[augment](*size))


def decoded_fit(augment: str, size: tuple[int, int]) -> tuple[int, int]:
    """Longest and shortest side that an image, decoded reduced, must still fill: `DetectionDataset`'s fit."""
    factor = _MARGIN / (_CROP if augment == "strong" else 1)
    return round(size[0] * factor), round(size[1] * factor)


def _strong(long: int, short: int) -> list[v2.Transform]:
    return [
        v2.RandomApply([ObjectCrop(min_scale=_CROP)], p=0.5),
        FitResize(long, short, scales=(0.8, 1.0)),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomPhotometricDistort(p=0.5),
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(min_size=1),
    ]


_PRESETS: dict[str, Callable[[int, int], list[v2.Transform]]] = {
    "none": lambda long, short: [FitResize(long, short)],
    "paper": lambda long, short: [FitResize(long, short), v2.RandomHorizontalFlip(0.5)],
    "multiscale": lambda long, short: [FitResize(long, short, (0.6, 1.0)), v2.RandomHorizontalFlip(0.5)],
    "strong": _strong,
}


for _name in _PRESETS:
    register("augmentation", _name)(_PRESETS[_name])
