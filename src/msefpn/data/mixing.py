"""Several images into one, with what is on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

Example = tuple[Any, dict[str, Any]]
"""An image (3, H, W) uint8 and its target, see `msefpn.data.transforms`."""
Window = tuple[int, int, int, int]
"""Top, left, height and width, pixels."""
_GREY = 114
"""Where no image is; YOLO's."""


def centred_in(boxes: Tensor, window: Window) -> Tensor:
    """Which boxes (G, 4) xyxy a crop keeps: those whose centre is within the window; (G,) bool."""
    top, left, height, width = window
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - torch.tensor([left, top])
    within: Tensor = ((centre > 0) & (centre < torch.tensor([width, height]))).all(dim=1)
    return within


def window_of(image: Any, target: dict[str, Any], room: tuple[int, int]) -> Example:
    """Crop an image to fit into `room`, height and width, at a place drawn at random where it is larger."""
    sides = tuple(image.shape[-2:])
    height, width = (min(have, most) for have, most in zip(sides, room, strict=True))
    spare = torch.tensor([sides[0] - height, sides[1] - width])
    top, left = ((spare + 1) * torch.rand(2)).long().minimum(spare).tolist()
    kept = centred_in(target["boxes"], (top, left, height, width))
    cropped = {"labels": target["labels"][kept]}
    for name in target.keys() - {"labels"}:
        rows = tv_tensors.wrap(target[name][kept], like=target[name])
        cropped[name] = functional.crop(rows, top, left, height, width)
    return functional.crop(image, top, left, height, width), {name: cropped[name] for name in target}


def composed(parts: Sequence[tuple[Any, dict[str, Any], tuple[int, int]]], size: tuple[int, int]) -> Example:
    """Put images on one of a size (height, width), each with its top left corner at (top, left)."""
    canvas = torch.full((3, *size), _GREY, dtype=torch.uint8)
    for image, _, (top, left) in parts:
        canvas[:, top : top + image.shape[-2], left : left + image.shape[-1]] = image
    return tv_tensors.Image(canvas), _joined([(target, corner) for _, target, corner in parts], size)


def blended(first: Example, second: Example, *, antialias: bool = True) -> Example:
    """The mean of two images from their top left corners on; the second is shrunk to fit on the first."""
    (image, target), (other, on_other) = first, second
    size = image.shape[-2], image.shape[-1]
    factor = min(have / need for have, need in zip(size, other.shape[-2:], strict=True))
    if factor < 1:
        small = [
            min(most, max(1, round(side * factor))) for side, most in zip(other.shape[-2:], size, strict=True)
        ]
        other = functional.resize(other, small, antialias=antialias)
        placed = {name: functional.resize(on_other[name], small) for name in on_other.keys() - {"labels"}}
        on_other = on_other | placed
    height, width = other.shape[-2:]
    mixed = image.as_subclass(Tensor).clone()
    covered = mixed[:, :height, :width].to(torch.int16) + other.as_subclass(Tensor)
    mixed[:, :height, :width] = (covered + 1).div(2, rounding_mode="floor").to(torch.uint8)
    return tv_tensors.Image(mixed), _joined([(target, (0, 0)), (on_other, (0, 0))], size)


def _joined(
    targets: Sequence[tuple[dict[str, Any], tuple[int, int]]], size: tuple[int, int]
) -> dict[str, Any]:
    """The objects of images whose top left corners are at (top, left) of one of a size (height, width)."""
    boxes = [
        target["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top])
        for target, (top, left) in targets
    ]
    joined: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(torch.cat(boxes), format="XYXY", canvas_size=size),
        "labels": torch.cat([target["labels"] for target, _ in targets]),
    }
    if "masks" in targets[0][0]:
        masks = torch.zeros(len(joined["labels"]), *size, dtype=torch.uint8)
        row = 0
        for target, (top, left) in targets:
            own = target["masks"]
            rows = slice(row, row + len(own))
            masks[rows, top : top + own.shape[-2], left : left + own.shape[-1]] = own.as_subclass(Tensor)
            row += len(own)
        joined["masks"] = tv_tensors.Mask(masks)
    return joined
