"""Plug-ins' transforms, whose results are checked before they reach the detector."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from msefpn.errors import UserError

Transform = Callable[..., tuple[Any, dict[str, Any]]]
"""Takes (image, target), and with an attribute `other_images` a sequence of other examples too."""
_ROUNDING = 1.0
"""Pixels that a box of a plug-in's transform may stick out, to be clipped."""


class CheckedTransform:
    """A plug-in's transform whose results are checked before they reach the detector.

    Args:
        name: of the augmentation, for messages.
        transform: see the module.
        resize: applied after it; None: it resizes itself.

    Attributes:
        other_images: how many examples it takes beside the image.

    Raises:
        UserError: its `other_images` is not a number.
    """

    def __init__(self, name: str, transform: Transform, resize: Transform | None) -> None:
        self.name = name
        self.transform = transform
        self.resize = resize
        self.other_images = getattr(transform, "other_images", 0)
        if not isinstance(self.other_images, int) or self.other_images < 0:
            raise self._fault(f"has other_images {self.other_images!r}: give a number from 0 on")

    def __call__(
        self, image: Any, target: dict[str, Any], *others: Sequence[tuple[Any, dict[str, Any]]]
    ) -> tuple[Any, dict[str, Any]]:
        """Transform one image and what is on it. Raises UserError that names the augmentation."""
        needed = list(target)  # the transform may change the dictionary
        try:
            result = self.transform(image, target, *others)
        except UserError:
            raise
        except Exception as error:  # a plug-in may raise anything; a worker's trace would be long
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:200]
            place = f"{Path(last.filename).name}:{last.lineno}"
            raise self._fault(f"raised {type(error).__name__} ({place}): {text}") from error
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise self._fault("must return (image, target)")
        image, target = result
        missing = [key for key in needed if key not in target]
        if missing:
            raise self._fault(f"returned a target without {', '.join(missing)}")
        image, target = self._checked(image, {key: target[key] for key in needed})
        return (image, target) if self.resize is None else self.resize(image, target)

    def _checked(self, image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The image and target as tv_tensors, whatever tensors the transform returned."""
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
            raise self._fault(f"returned {_described(image)}, not an image (3, H, W) uint8")
        height, width = image.shape[-2:]
        boxes, labels = target["boxes"], target["labels"]
        if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise self._fault(f"returned {_described(boxes)}, not boxes (G, 4)")
        if getattr(boxes, "format", tv_tensors.BoundingBoxFormat.XYXY) != tv_tensors.BoundingBoxFormat.XYXY:
            raise self._fault("returned boxes that are not xyxy")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (len(boxes),):
            raise self._fault(f"returned {_described(labels)}, not int64 labels for {len(boxes)} boxes")
        corners = boxes.as_subclass(Tensor).float()
        limit = corners.new_tensor([width, height, width, height])
        if not ((corners >= -_ROUNDING) & (corners <= limit + _ROUNDING)).all():  # also where NaN
            raise self._fault("returned boxes outside the image: end it with v2.ClampBoundingBoxes()")
        corners = corners.clamp(min=0).minimum(limit)
        if not (corners[:, 2:] > corners[:, :2]).all():
            raise self._fault("returned boxes without area: end it with v2.SanitizeBoundingBoxes()")
        checked: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
            "labels": labels.as_subclass(Tensor),
        }
        if "masks" in target:
            masks = target["masks"]
            if not isinstance(masks, Tensor) or masks.shape != (len(boxes), height, width):
                expected = f"({len(boxes)}, {height}, {width})"
                raise self._fault(f"returned {_described(masks)}, not masks {expected}")
            checked["masks"] = tv_tensors.Mask(masks.as_subclass(Tensor).to(torch.uint8))
        return tv_tensors.Image(image.as_subclass(Tensor)), checked

    def _fault(self, text: str) -> UserError:
        return UserError(f"augmentation '{self.name}' {text}")


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
