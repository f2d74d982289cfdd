"""FPN: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv 1612.03144."""

from collections.abc import Sequence

from torch import Tensor, nn

from msefpn.necks.base import Neck, init_xavier
from msefpn.necks.layers import Lateral
from msefpn.necks.upsample import make_upsampler


class FPN(Neck):
    """Feature pyramid: 1x1 laterals, nearest top-down sums, 3x3 smoothing; no activation.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top: `none`, `pool` (P6 for two-stage heads), `conv_c5` (P6 and P7
            of RetinaNet), `conv_c5_relu` (detectron2's RetinaNet) or `conv_p5_relu` (torchvision's).
        norm: of the laterals: `none`, as published, or `gn`, group normalisation.
        upsample: of the top-down path: `nearest`, as published, `bilinear`, `carafe`, `dysample`,
            `dysample_plus`, `dysample_s` or `dysample_s_plus`, see `msefpn.necks.upsample`.
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
            in_channels, in_strides, out_channels, start_level=start_level, extra_levels=extra_levels
        )
        self.norm, self.upsample = norm, upsample
        levels = self.in_channels[start_level:]
        self.laterals = nn.ModuleList(Lateral(channels, out_channels, norm) for channels in levels)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in levels)
        self.upsamplers = nn.ModuleList(make_upsampler(upsample, out_channels) for _ in levels[1:])
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        return self.with_extra(features, self.fused(self.laterals_of(features)))

    def laterals_of(self, features: list[Tensor]) -> list[Tensor]:
        """Bring the maps from `start_level` on to `out_channels`."""
        inputs = features[self.start_level :]
        return [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]

    def fused(self, laterals: list[Tensor]) -> list[Tensor]:
        """Join the laterals top-down and smooth what that gives."""
        merged = list(laterals)
        for i in range(len(merged) - 2, -1, -1):
            merged[i] = self.joined(i, merged[i], merged[i + 1])
        return [conv(x) for conv, x in zip(self.outputs, merged, strict=True)]

    def joined(self, step: int, local: Tensor, above: Tensor) -> Tensor:
        """The sum of a level (B, C, H, W) and the one above, upsampled; steps count from the finest."""
        upsampled: Tensor = self.upsamplers[step](above, like=local)
        return upsampled.add_(local)

    def check_start(self, neck: Neck, *more: str) -> None:
        """Raise ValueError where a neck cannot take the weights of this one, to start as it.

        Args:
            neck: the other one.
            more: names of attributes that must be the same, beside inputs and outputs.
        """
        for name in ("in_channels", "in_strides", "out_channels", "out_strides", *more):
            own, other = getattr(neck, name), getattr(self, name)
            if own != other:
                raise ValueError(f"{name} is {own}, the FPN's is {other}: they must be the same")
        if type(neck.extra) is not type(self.extra):
            raise ValueError("the FPN makes its extra levels in another way: give the same extra_levels")
