"""Necks of plug-ins that know nothing of start levels and extra levels, or do not derive from `Neck`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from msefpn.necks import Neck


class AdaptedNeck(Neck):
    """A module that maps a list of maps to a pyramid, as a `Neck`.

    Args:
        inner: the module, with the attributes `out_channels` and `out_strides`, made for the inputs from
            `start_level` on.
        in_channels: channels of the input maps, finest first.
        in_strides: their strides.
        start_level: index of the first input map that the module is given.
        extra_levels: coarser levels on top of its own, as in `FPN`.
    """

    def __init__(
        self,
        inner: nn.Module,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        start_level: int = 0,
        extra_levels: str = "none",
    ) -> None:
        made: Any = inner
        super().__init__(
            in_channels, in_strides, made.out_channels, start_level=start_level, extra_levels=extra_levels
        )
        self.inner = made
        coarsest = made.out_strides[-1]
        self.out_strides = [*made.out_strides, *(coarsest * 2**i for i in range(1, self.extra.count + 1))]
        self.aux = tuple(getattr(made, "aux", ()))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        return self.with_extra(features, list(self.inner(features[self.start_level :])))

    def forward_with_aux(self, features: list[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """See `Neck.forward_with_aux`; the maps for training are the module's."""
        if not hasattr(self.inner, "forward_with_aux"):
            return self(features), {}
        pyramid, aux = self.inner.forward_with_aux(features[self.start_level :])
        return self.with_extra(features, list(pyramid)), aux
