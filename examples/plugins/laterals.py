"""A neck: a pyramid without a top-down path, after table 1 (d) of Lin et al., arXiv 1612.03144."""

from collections.abc import Sequence

from torch import Tensor, nn

from msefpn.necks import Neck, init_xavier
from msefpn.plugins import register


@register("neck", "laterals")
class Laterals(Neck):
    """One 1x1 convolution for each level; nothing is fused.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output.
        extra_levels: coarser levels on top, as in `FPN`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
    ) -> None:
        super().__init__(
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        levels = self.in_channels[start_level:]
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in levels)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map each level; shapes as in `Neck.forward`."""
        inputs = features[self.start_level :]
        pyramid = [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        return self.with_extra(features, pyramid)
