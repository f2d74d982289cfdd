"""Images in memory, whatever holds them, into RGB arrays; what is not an image is one line.

| what | is read as |
|---|---|
| numpy array | (H, W, 3), (H, W, 1) or (H, W); uint8 from 0 to 255, or floats from 0 to 1 |
| torch tensor | (3, H, W), (1, H, W) or (H, W); likewise |
| PIL image | any mode, F with floats from 0 to 1; turned upright by its EXIF orientation |
| path | an image file, as `msefpn predict` reads it |

Colours are red, green, blue. Grey is repeated over the three channels.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from msefpn.data.images import ImageFault, pixels_of, read_image
from msefpn.errors import UserError

ImageInput = NDArray[Any] | Tensor | Image.Image | str | Path
"""What is taken as an image."""


def read_pixels(image: object, name: str) -> NDArray[np.uint8]:
    """Return the pixels of an image, (H, W, 3) uint8 RGB; a copy.

    Args:
        image: see above.
        name: what messages call it, such as `images[2]`.

    Raises:
        UserError: it is not an image, or not in one of these forms.
    """
    if isinstance(image, (str, os.PathLike)):
        return _from_file(os.fspath(image), name)
    if isinstance(image, Image.Image) and image.mode == "F":
        return _from_array(np.array(ImageOps.exif_transpose(image)), name)
    if isinstance(image, Image.Image):
        try:
            pixels = pixels_of(image)
        except ImageFault as error:
            raise UserError(f"{name} cannot be read: {error}") from None
        if not pixels.size:
            raise UserError(f"{name} is empty: it has {image.width} x {image.height} pixels")
        return pixels
    if isinstance(image, Tensor):
        return _from_tensor(image, name)
    if isinstance(image, np.ndarray):
        return _from_array(image, name)
    raise UserError(
        f"{name} is of type {type(image).__name__}: give a numpy array, a PIL image, a torch tensor or a path"
    )


def _from_file(path: str | bytes, name: str) -> NDArray[np.uint8]:
    text = os.fsdecode(path)
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) or Path(text).is_dir():
        raise UserError(f"{name} is '{text}', which is not an image file: give it to msefpn.stream")
    try:
        return read_image(Path(text))
    except (OSError, ImageFault) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is '{text}', which cannot be read: {reason}") from None


def _from_array(image: NDArray[Any], name: str) -> NDArray[np.uint8]:
    shape = image.shape
    _check_dimensions(shape, name, "(H, W, 3) or, for grey, (H, W)")
    _check_channels(shape, 2, name, rest="channels first", turn="transpose(1, 2, 0)", cut="..., :3")
    _check_type(image.dtype, name, good=image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating))
    grey = image[..., None] if image.ndim == 2 else image  # (H, W, 1 or 3)
    pixels = grey if image.dtype == np.uint8 else _from_floats(grey.astype(np.float32), name)
    return np.array(np.broadcast_to(pixels, (*shape[:2], 3)))


def _from_tensor(image: Tensor, name: str) -> NDArray[np.uint8]:
    shape = tuple(image.shape)
    _check_dimensions(shape, name, "(3, H, W) or, for grey, (H, W)")
    _check_channels(shape, 0, name, rest="channels last", turn="permute(2, 0, 1)", cut=":3")
    _check_type(image.dtype, name, good=image.dtype == torch.uint8 or image.is_floating_point())
    values = image.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return _from_array((values.movedim(0, -1) if values.ndim == 3 else values).numpy(), name)


def _check_dimensions(shape: tuple[int, ...], name: str, expected: str) -> None:
    if len(shape) not in (2, 3):
        batch = "; give a batch as a list of images" if len(shape) == 4 else ""
        raise UserError(f"{name} has {len(shape)} dimensions, {shape}: give {expected}{batch}")
    if 0 in shape:
        raise UserError(f"{name} is empty, {shape}: give {expected} with pixels")


def _check_channels(shape: tuple[int, ...], axis: int, name: str, *, rest: str, turn: str, cut: str) -> None:
    """Check that 1 or 3 channels are at `axis`; the texts are of what else is there, and its remedy."""
    if len(shape) == 2 or shape[axis] in (1, 3):
        return
    if shape[axis] == 4:
        raise UserError(f"{name} has four channels, {shape}: drop the fourth with image[{cut}]")
    if shape[2 - axis] in (1, 3):
        raise UserError(f"{name} is {rest}, {shape}: give image.{turn}")
    wanted = "(H, W, 3)" if axis else "(3, H, W)"
    raise UserError(f"{name} has {shape[axis]} channels, {shape}: give {wanted} RGB")


def _check_type(dtype: object, name: str, *, good: bool) -> None:
    if not good:
        raise UserError(f"{name} is of dtype {dtype}: give uint8 from 0 to 255, or floats from 0 to 1")


def _from_floats(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise UserError(f"{name} has values that are NaN or infinite: give floats from 0 to 1")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise UserError(
            f"{name} has values from {low:.4g} to {high:.4g}: floats must be 0 to 1, and not normalised; "
            "give uint8 from 0 to 255, or divide by 255"
        )
    return np.rint(values * 255).astype(np.uint8)
