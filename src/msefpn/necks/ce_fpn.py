"""CE-FPN: Luo et al., "CE-FPN: Enhancing Channel Information for Object Detection", arXiv 2103.10643."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import Neck, init_xavier
from msefpn.necks.gates import CAG
from msefpn.necks.layers import NORMS, Lateral, check_choice, max_down, max_half, upsample_nearest
from msefpn.necks.upsample import make_upsampler


class SkipFusion(nn.Module):
    """Sub-pixel skip fusion (section 3.1): F_i = conv1x1(C_i) + conv1x1(shuffle(C_{i+1})).

    The pixel shuffle by 2 gives the coarser map the finer one's size at a quarter of its channels, and so
    spares it the reduction to the pyramid's width.

    Args:
        in_channels: channels of C_i.
        above_channels: channels of C_{i+1}, divisible by 4.
        out_channels: channels of F_i.
        norm: of F_i, as in `Lateral`.
    """

    def __init__(self, in_channels: int, above_channels: int, out_channels: int, norm: str = "none") -> None:
        super().__init__()
        self.local = nn.Conv2d(in_channels, out_channels, 1)
        self.above = nn.Conv2d(above_channels // 4, out_channels, 1)
        self.norm: nn.Module = NORMS[norm](out_channels)

    def forward(self, x: Tensor, above: Tensor) -> Tensor:
        """Fuse x (B, in_channels, H, W) and the map above (B, above_channels, h, w)."""
        local: Tensor = self.local(x)
        fused: Tensor = self.norm(local + upsample_nearest(self.above(F.pixel_shuffle(above, 2)), like=x))
        return fused.to(local.dtype)


class ContextEnhancement(nn.Module):
    """Sub-pixel context enhancement (section 3.2): the sum of three views of C5 at twice its size.

    A 3x3 convolution shuffled by 2; a 3x3 stride-2 max-pooling and a 1x1 convolution shuffled by 4; the
    global average through a 1x1 convolution, broadcast.

    Args:
        in_channels: channels of C5.
        out_channels: channels of the sum.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)
        self.wide = nn.Conv2d(in_channels, 16 * out_channels, 1)
        self.whole = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, c5: Tensor, like: Tensor) -> Tensor:
        """Context of c5 (B, in_channels, h, w) at the size of `like`, (B, out_channels, H, W)."""
        local = F.pixel_shuffle(self.local(c5), 2)
        wide = F.pixel_shuffle(self.wide(max_half(c5)), 4)
        whole: Tensor = self.whole(c5.mean(dim=(2, 3), keepdim=True))  # (B, out_channels, 1, 1)
        return upsample_nearest(local, like=like) + upsample_nearest(wide, like=like) + whole


class CEFPN(Neck):
    """Channel-enhanced feature pyramid: sub-pixel fusion and context, one channel gate for all levels.

        F_i = skip fusion (the two levels under C5), conv1x1(C_i) (finer ones);  P_i = F_i + up(P_{i+1})
        I = mean of all P_i and the context of C5, at the size of the level under C5
        R_i = w * (F_i + resize(I)), R_5 = w * resize(I), w = CAG(I)

    No authors' code is known. The gated sum takes F_i and not P_i, as the one public re-implementation reads
    the paper; P_i then acts through I alone. Finer maps are resized by adaptive max-pooling, coarser ones
    nearest, to the size at hand, so that sides need no common divisor. There are no 3x3 smoothing
    convolutions, and nothing is training-only.

    Args:
        in_channels: channels of the input maps, finest first; the two coarsest divisible by 4.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        norm: of F_i, as of the laterals in `FPN`.
        upsample: of P_{i+1}, as in `FPN`.

    Raises:
        ValueError: channels that cannot be shuffled, or no level under the coarsest.
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
        inputs = self.in_channels[start_level:]
        if len(inputs) < 2:
            raise ValueError("ce_fpn needs a level under the coarsest: lower start_level")
        check_choice("norm", norm, tuple(NORMS))
        if any(channels % 4 for channels in inputs[-2:]):
            raise ValueError(f"ce_fpn shuffles channels by 4: {inputs[-2:]} must be divisible by 4")
        self.plain = nn.ModuleList(Lateral(channels, out_channels, norm) for channels in inputs[:-3])
        pairs = list(pairwise(inputs))
        self.skips = nn.ModuleList(SkipFusion(own, above, out_channels, norm) for own, above in pairs[-2:])
        self.upsamplers = nn.ModuleList(make_upsampler(upsample, out_channels) for _ in pairs[1:])
        self.context = ContextEnhancement(inputs[-1], out_channels)
        self.guidance = CAG(out_channels)
        init_xavier(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Fuse the maps; shapes as in `Neck.forward`."""
        inputs = features[self.start_level :]
        fused = [conv(x) for conv, x in zip(self.plain, inputs, strict=False)]
        first = len(fused)
        fused += [skip(inputs[first + i], inputs[first + i + 1]) for i, skip in enumerate(self.skips)]
        summed = list(fused)
        for i in range(len(summed) - 2, -1, -1):
            summed[i] = self.upsamplers[i](summed[i + 1], like=summed[i]).add_(summed[i])
        middle = summed[-1]
        last = len(summed) - 1
        gathered = [max_down(x, middle, ratio=2 ** (last - i)) for i, x in enumerate(summed[:-1])]
        context = self.context(inputs[-1], like=middle)
        integrated = torch.stack([*gathered, middle, context]).mean(dim=0)
        weight = self.guidance.weight(integrated)
        pyramid = [weight * (x + upsample_nearest(integrated, like=x)) for x in fused[:-1]]
        pyramid.append(weight * (fused[-1] + integrated))
        pyramid.append(weight * max_down(integrated, inputs[-1], ratio=2))
        return self.with_extra(features, pyramid)
