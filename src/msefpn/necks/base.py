"""The contract that every neck keeps."""

import abc
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from msefpn.necks.layers import EXTRA_LEVELS, ExtraLevels


class InnerMap(NamedTuple):
    """A map, gate or attention inside a neck, which `msefpn explain` shows.

    Any module of a neck may have a method `inner_maps(outputs) -> list[InnerMap]`, called after a forward.
    `outputs` has the outputs of each module inside, by name, one for each call, and its own as `""`.
    """

    name: str
    """What it is, such as `SIM gate`; the same for all levels."""
    kind: str
    """`map`, `gate` (0 to 1, 0.5 is neutral) or `channels`, a gate without cells."""
    values: Tensor
    """(B, C, h, w), over the whole padded image."""
    groups: tuple[int, ...] = ()
    """Of `channels`: how many belong to each of the maps that the module reads, in order."""
    text: str = ""
    """One sentence for the page."""


class Neck(nn.Module, abc.ABC):
    """Maps the backbone's feature maps to a pyramid of maps of one width.

    A subclass takes `in_channels`, `in_strides` and `out_channels` first and then its own options,
    builds its layers, and implements `forward`. It sets nothing else: strides follow from the inputs.

    Attributes:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps, input pixels per cell, each twice the one before.
        out_channels: channels of every output map.
        out_strides: strides of the output maps.
        start_level: index of the first input map that becomes an output; the ones before are at most read.
        on_top: whether it reads another neck's pyramid, and not a backbone's maps.
        aux: names of the maps that `forward_with_aux` gives for training.
        init_seed: drawn before any layer is made, for `init_xavier`.
    """

    on_top = False
    aux: tuple[str, ...] = ()

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
    ) -> None:
        """Check the contract's arguments. Raises ValueError."""
        super().__init__()
        self.init_seed = int(torch.randint(2**62, (), device="cpu"))
        if len(in_channels) != len(in_strides) or not in_channels:
            raise ValueError(
                f"in_channels {list(in_channels)} and in_strides {list(in_strides)} must pair up"
            )
        if any(fine * 2 != coarse for fine, coarse in pairwise(in_strides)):
            raise ValueError(f"in_strides {list(in_strides)} must double from level to level")
        if not 0 <= start_level < len(in_channels):
            raise ValueError(f"start_level {start_level} is not one of the {len(in_channels)} input levels")
        if extra_levels not in EXTRA_LEVELS:
            raise ValueError(f"extra_levels '{extra_levels}' is unknown: known: {', '.join(EXTRA_LEVELS)}")
        self.in_channels = list(in_channels)
        self.in_strides = list(in_strides)
        self.out_channels = out_channels
        self.start_level = start_level
        self.extra: ExtraLevels = EXTRA_LEVELS[extra_levels](in_channels[-1], out_channels)
        self.out_strides = self.in_strides[start_level:]
        self.out_strides += [in_strides[-1] * 2**i for i in range(1, self.extra.count + 1)]

    @abc.abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps.

        Args:
            features: maps (B, in_channels[i], H_i, W_i), finest first, one for each input level; H_i and W_i
                are any size from 1 on, and need not be exact halves of the level below.

        Returns:
            Maps (B, out_channels, H_j, W_j), finest first, one for each of `out_strides`.
        """

    def forward_with_aux(self, features: list[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Fuse the maps in training.

        Returns:
            The pyramid as `forward` gives it, and by name the maps that only training looks at.
        """
        return self(features), {}

    def with_extra(self, features: list[Tensor], pyramid: list[Tensor]) -> list[Tensor]:
        """`pyramid`, the fused maps, and the extra levels on top of it."""
        extra: list[Tensor] = self.extra(features[-1], pyramid[-1])
        return pyramid + extra


class OwnStart(nn.Module, abc.ABC):
    """A module of a neck some of whose weights do not start from Xavier's."""

    @abc.abstractmethod
    def start(self, generator: torch.Generator | None) -> None:
        """Set these weights, random ones by the generator; called after the others have theirs."""


def init_xavier(neck: Neck) -> None:
    """Xavier-uniform weights and zero biases in every convolution (mmdetection's FPN), but for `OwnStart`.

    Two necks that are built from the same random state get the same weights wherever names and shapes agree,
    so that trainings of both can be paired.
    """
    for name, module in neck.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight, generator=_generator(neck, name))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, module in neck.named_modules():
        if isinstance(module, OwnStart):
            module.start(_generator(neck, f"{name} own"))


def _generator(neck: Neck, name: str) -> torch.Generator | None:
    """The random numbers of a module; None on `meta`, which takes none."""
    if any(weight.is_meta for weight in neck.parameters()):
        return None
    return torch.Generator("cpu").manual_seed(neck.init_seed ^ zlib.crc32(name.encode()))
