"""BFP: Pang et al., "Libra R-CNN: Towards Balanced Learning for Object Detection", arXiv 1904.02701."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, Neck
from msefpn.necks.layers import max_down, upsample_nearest

REFINED_STRIDE = 16


class NonLocal(nn.Module):
    """Embedded-Gaussian non-local block (arXiv 1711.07971, equation 6), added to its input.

        y = x + W_out softmax((W_theta x)^T (W_phi x)) (W_g x)

    The softmax runs over positions and is not scaled; nothing is reduced; W_out starts at zero, so that the
    block starts as the identity.

    Args:
        channels: channels of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.out = nn.Conv2d(channels, channels, 1)
        for conv in (self.theta, self.phi, self.g):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # it has one
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """Refine x (B, C, H, W)."""
        maps = (conv(x).flatten(2).transpose(1, 2) for conv in (self.theta, self.phi, self.g))
        theta, phi, g = (cells.unsqueeze(1) for cells in maps)  # (B, 1 head, H * W, C): ONNX takes no fewer
        mixed = F.scaled_dot_product_attention(theta, phi, g, scale=1.0).squeeze(1)
        refined: Tensor = x + self.out(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return refined

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        return [InnerMap("balanced map", "map", outputs[""][0])]


class BFP(Neck):
    """Balanced feature pyramid (section 3.2): all levels of a pyramid gathered, refined, scattered back.

    The levels are resized to the one at stride 16 (finer ones by adaptive max-pooling, coarser ones nearest),
    averaged, refined by a non-local block, resized back and added to each level. It stands on another neck's
    outputs, extra levels included: `fpn+bfp`. Nothing is training-only; Libra R-CNN's sampling and loss are
    options of the heads.

    Args:
        in_channels: channels of the input maps, all `out_channels`.
        in_strides: strides of the input maps, 16 among them.
        out_channels: channels of every output map.

    Raises:
        ValueError: the inputs are not a pyramid of one width, or have no level at stride 16.
    """

    on_top = True

    def __init__(
        self, in_channels: Sequence[int], in_strides: Sequence[int], out_channels: int = 256
    ) -> None:
        super().__init__(in_channels, in_strides, out_channels)
        if set(in_channels) != {out_channels}:
            raise ValueError(
                f"bfp reads a pyramid of {out_channels} channels on every level, not {list(in_channels)}: "
                "put it on another neck, as in fpn+bfp"
            )
        if REFINED_STRIDE not in in_strides:
            raise ValueError(f"bfp refines the level of stride 16, but the strides are {list(in_strides)}")
        self.level = list(in_strides).index(REFINED_STRIDE)
        self.refine = NonLocal(out_channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Balance the maps; shapes as in `Neck.forward`."""
        middle = features[self.level]
        gathered = [self._resized(x, i, like=middle, level=self.level) for i, x in enumerate(features)]
        balanced = self.refine(torch.stack(gathered).mean(dim=0))
        return [x + self._resized(balanced, self.level, like=x, level=i) for i, x in enumerate(features)]

    def _resized(self, x: Tensor, from_level: int, like: Tensor, level: int) -> Tensor:
        if from_level < level:
            return max_down(x, like, ratio=2 ** (level - from_level))
        return x if from_level == level else upsample_nearest(x, like=like)
