"""AC-FPN: Cao et al., "Attention-guided Context Feature Pyramid Network", arXiv 2005.11475."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, OwnStart, init_xavier
from msefpn.necks.fpn import FPN
from msefpn.necks.layers import float32, group_norm, rounded_width

DILATIONS = (3, 6, 12, 18, 24)


class DeformableConv(OwnStart):
    """3x3 deformable convolution (arXiv 1703.06211); its offsets start at zero. Needs torchvision."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        from torchvision.ops import DeformConv2d  # noqa: PLC0415  # necks alone need torch only

        super().__init__()
        shape: dict[str, int] = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
        self.offsets = nn.Conv2d(in_channels, 18, **shape)  # type: ignore[arg-type]  # all are ints
        self.conv = DeformConv2d(in_channels, out_channels, **shape)

    def start(self, generator: torch.Generator | None) -> None:
        """Set the offsets to zero."""
        nn.init.zeros_(self.offsets.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in_channels, H, W) to (B, out_channels, H, W)."""
        with float32(x):  # the operator knows no bfloat16
            x = x.to(self.offsets.weight.dtype)
            mixed: Tensor = self.conv(x, self.offsets(x))
        return mixed


class CEM(nn.Module):
    """Context extraction module: five densely connected blocks of growing dilation.

    Block k reads C5 and the outputs of all blocks before it: 1x1 convolution to twice the width, group
    normalisation, ReLU, dilated 3x3 convolution to the width, ReLU, dropout. A 1x1 convolution with group
    normalisation joins the five outputs.

    Args:
        in_channels: channels of C5.
        out_channels: channels of the context.
        deformable: deformable 3x3 convolutions (the paper), else plain ones (the authors' code).
        dropout: share of the outputs of each block that are dropped in training.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, deformable: bool = False, dropout: float = 0.1
    ) -> None:
        super().__init__()
        hidden = 2 * out_channels
        self.blocks = nn.ModuleList()
        for k, dilation in enumerate(DILATIONS):
            self.blocks.append(
                nn.Sequential(
                    nn.Conv2d(in_channels + k * out_channels, hidden, 1, bias=False),
                    group_norm(hidden),
                    nn.ReLU(inplace=True),
                    DeformableConv(hidden, out_channels, dilation)
                    if deformable
                    else nn.Conv2d(hidden, out_channels, 3, padding=dilation, dilation=dilation),
                    nn.ReLU(inplace=True),
                    nn.Dropout(dropout),
                )
            )
        self.join = nn.Sequential(
            nn.Conv2d(len(DILATIONS) * out_channels, out_channels, 1, bias=False), group_norm(out_channels)
        )

    def forward(self, c5: Tensor) -> Tensor:
        """Context (B, out_channels, H, W) of c5 (B, in_channels, H, W)."""
        outputs: list[Tensor] = []
        for block in self.blocks:
            outputs.append(block(torch.cat([c5, *outputs], dim=1)))
        context: Tensor = self.join(torch.cat(outputs, dim=1))
        return context


class Correlation(nn.Module):
    """sigmoid(mean over queries of Q^T K): one weight for each cell.

    The mean of the scores over queries is the score of the mean query, which is what is computed.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, rounded_width(channels, 8), 1)
        self.key = nn.Conv2d(channels, rounded_width(channels, 8), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the cells of x (B, C, H, W): (B, 1, H, W)."""
        query = self.query(x.mean(dim=(2, 3), keepdim=True))  # (B, C', 1, 1)
        scores: Tensor = (query * self.key(x)).sum(dim=1, keepdim=True)
        return scores.sigmoid()


class AM(nn.Module):
    """Attention-guided module: CxAM weighs the context by itself, CnAM by the content of C5.

        E = CxAM(F) * V + CnAM(C5) * V, V = conv1x1(F)

    Args:
        content_channels: channels of C5.
        channels: channels of the context F.
    """

    def __init__(self, content_channels: int, channels: int) -> None:
        super().__init__()
        self.context = Correlation(channels)
        self.content = Correlation(content_channels)
        self.value = nn.Conv2d(channels, channels, 1)

    def forward(self, context: Tensor, c5: Tensor) -> Tensor:
        """Weigh context (B, channels, H, W) by itself and by c5 (B, content_channels, H, W)."""
        weight: Tensor = self.context(context) + self.content(c5)
        value: Tensor = self.value(context)
        return weight * value

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        context, content = outputs["context"][0], outputs["content"][0]
        return [InnerMap("CxAM attention", "gate", context), InnerMap("CnAM attention", "gate", content)]


class ACFPN(FPN):
    """FPN whose coarsest lateral is given attention-guided context of large receptive fields.

        T_5 = conv1x1(C_5) + AM(CEM(C_5), C_5)

    The paper runs res5 at stride 16 and subsamples the result to P5; here C5 stays at the backbone's stride,
    at about a quarter of the cost. The authors released CEM and not AM; AM follows the paper's text, with
    one V for both branches. Dropout is training-only.

    Args:
        in_channels: channels of the input maps, finest first.
        in_strides: strides of the input maps.
        out_channels: channels of every output map.
        start_level: first input level that becomes an output (0 for two-stage heads, 1 for RetinaNet).
        extra_levels: coarser levels on top, as in `FPN`.
        norm: of the laterals, as in `FPN`.
        upsample: of the top-down path, as in `FPN`.
        attention: with AM; else the context is added as it is.
        deformable: see `CEM`; needs torchvision.
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
        attention: bool = True,
        deformable: bool = False,
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
        self.cem = CEM(in_channels[-1], out_channels, deformable=deformable)
        self.am = AM(in_channels[-1], out_channels) if attention else None
        init_xavier(self)

    def laterals_of(self, features: list[Tensor]) -> list[Tensor]:
        """FPN's laterals, the coarsest with context."""
        laterals = super().laterals_of(features)
        context = self.cem(features[-1])
        if self.am is not None:
            context = self.am(context, features[-1])
        return [*laterals[:-1], laterals[-1] + context]
