"""What a plug-in's backbone or neck promises and gives, compared once while a detector is built."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msefpn.errors import UserError
from msefpn.models.backbone import Backbone


def verify_backbone(backbone: Backbone, what: str) -> None:
    """Raise UserError where a backbone's maps are not those that its channels and strides name."""
    if len(backbone.channels) != len(backbone.strides):
        raise UserError(
            f"{what} names {len(backbone.channels)} channels, but {len(backbone.strides)} strides: "
            "name one of each for each map"
        )
    side = 2 * max(backbone.strides)
    image = (side, side + side // 2)
    maps = _run(backbone, torch.zeros(1, 3, *image), what)
    _check_maps(maps, backbone.channels, backbone.strides, image, what, "strides", "channels")


def verify_neck(neck: Any, in_channels: Sequence[int], in_strides: Sequence[int], what: str) -> None:
    """Raise UserError where a neck's maps are not those that its out_channels and out_strides name.

    Args:
        neck: what a plug-in's class or factory returned.
        in_channels: channels of the maps that it was built for.
        in_strides: their strides.
        what: what messages call it.
    """
    if not isinstance(neck, nn.Module):
        raise UserError(f"{what} gives a {type(neck).__name__}: return a torch.nn.Module")
    width, strides = getattr(neck, "out_channels", None), getattr(neck, "out_strides", None)
    if not isinstance(width, int):
        raise UserError(f"{what} lacks the attribute out_channels: set it to the channels of its maps")
    if not isinstance(strides, Sequence) or not strides or not all(isinstance(s, int) for s in strides):
        raise UserError(f"{what} lacks the attribute out_strides: set it to a list, one int for each map")
    side = 2 * max(in_strides)
    image = (side, side + side // 2)
    sizes = [_cells(image, stride) for stride in in_strides]
    features = [torch.zeros(1, n, *size) for n, size in zip(in_channels, sizes, strict=True)]
    maps = _run(neck, features, what)
    _check_maps(maps, [width] * len(strides), strides, image, what, "out_strides", "out_channels")


def _run(module: nn.Module, given: Any, what: str) -> list[Tensor]:
    """What a module gives, as the list that it must be."""
    training = module.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            maps = module.eval()(given)
    except Exception as error:  # a plug-in may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what} fails on a small image ({type(error).__name__}: {reason}): fix it"
        ) from error
    finally:
        module.train(training)
    if not isinstance(maps, (list, tuple)) or not all(isinstance(x, Tensor) for x in maps):
        raise UserError(
            f"{what} gives a {type(maps).__name__}: return a list of maps (B, C, H, W), finest first"
        )
    return list(maps)


def _check_maps(
    maps: list[Tensor],
    channels: Sequence[int],
    strides: Sequence[int],
    image: tuple[int, int],
    what: str,
    strides_name: str,
    channels_name: str,
) -> None:
    if len(maps) != len(strides):
        raise UserError(
            f"{what} gives {len(maps)} maps, but its {strides_name} name {len(strides)}: "
            f"{', '.join(map(str, strides))}; return one map for each"
        )
    for x, width, stride in zip(maps, channels, strides, strict=True):
        expected = (1, width, *_cells(image, stride))
        if tuple(x.shape) != expected:
            wrong = strides_name if x.ndim != 4 or x.shape[2:] != expected[2:] else channels_name
            raise UserError(
                f"{what} gives a map of shape {tuple(x.shape)} at stride {stride} of an image of "
                f"{image[0]} x {image[1]} pixels, but by its {wrong} it must be {expected}"
            )


def _cells(image: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-image[0] // stride), -(-image[1] // stride)
