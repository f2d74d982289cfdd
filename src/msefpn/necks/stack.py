"""Necks on necks: what a name like `fpn+bfp` stands for."""

from collections.abc import Sequence

from torch import Tensor, nn

from msefpn.necks.base import Neck


class Stack(Neck):
    """A neck, and others that each read the pyramid of the one before.

    Args:
        members: the necks, the one that reads the backbone's maps first.
    """

    def __init__(self, members: Sequence[Neck]) -> None:
        first = members[0]
        super().__init__(
            first.in_channels, first.in_strides, first.out_channels, start_level=first.start_level
        )
        self.out_strides = members[-1].out_strides
        self.aux = tuple(name for member in members for name in member.aux)
        self.members = nn.ModuleList(members)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        return self.forward_with_aux(features)[0]

    def forward_with_aux(self, features: list[Tensor]) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """See `Neck.forward_with_aux`; the maps for training are those of all members."""
        pyramid = features
        aux: dict[str, list[Tensor]] = {}
        for member in self.members:
            pyramid, own = member.forward_with_aux(pyramid)  # type: ignore[operator]  # a ModuleList forgets
            aux |= own
        return pyramid, aux
