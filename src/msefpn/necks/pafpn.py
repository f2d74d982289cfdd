"""PAFPN: Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018, arXiv 1803.01534."""

from collections.abc import Sequence

from torch import Tensor, nn

from msefpn.necks.base import init_xavier
from msefpn.necks.fpn import FPN
from msefpn.necks.layers import cropped


class PAFPN(FPN):
    """FPN, then a bottom-up path over its outputs (section 3.1).

        N_2 = P_2;  N_i = P_i + conv3x3s2(N_{i-1});  output_i = conv3x3(N_i), output_2 = N_2

    By default no norm, and no activation; the sums are formed before they are smoothed, as in mmdetection.
    The paper has a ReLU after each convolution, the authors' code also group normalisation.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        norm: of the laterals, as in `FPN`.
        upsample: of the top-down path, as in `FPN`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int = 256,
        *,
        start_level: int = 0,
        extra_levels: str = "none",
        norm: str = "none",
        upsample: str = "nearest",
    ) -> None:
        super().__init__(
            in_channels,
            in_strides,
            out_channels,
            start_level=start_level,
            extra_levels=extra_levels,
            norm=norm,
            upsample=upsample,
        )
        steps = range(len(self.outputs) - 1)
        self.downs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) for _ in steps
        )
        self.smooths = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in steps)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        sums = self.fused(self.laterals_of(features))
        for i, down in enumerate(self.downs):
            sums[i + 1] = sums[i + 1] + cropped(down(sums[i]), like=sums[i + 1])
        pyramid = sums[:1] + [smooth(x) for smooth, x in zip(self.smooths, sums[1:], strict=True)]
        return self.with_extra(features, pyramid)
