"""Gates on the top-down path: MSE-FPN's GCG, and what may stand in its place.

Every gate here reads a map (B, C, H, W) and gives a map of the same shape.
"""

import torch
from torch import Tensor, nn

from msefpn.necks.base import InnerMap, OwnStart
from msefpn.necks.layers import rounded_width, strip_means


class Gate(nn.Module):
    """Base of the gates: `forward` gates one map, `fuse` joins a level with the one above."""

    joins = False
    """Whether it has weights for two maps: the top level, with nothing above it, then has no gate."""
    has_identity = False
    """Whether it can start as the identity and still learn."""

    def fuse(self, local: Tensor, above: Tensor) -> Tensor:
        """Gate the sum of this level's map and the upsampled map of the level above, both (B, C, H, W).

        `above` is used up: memory for another map of this size costs more than the sum.
        """
        gated: Tensor = self(above.add_(local))
        return gated


class NoGate(Gate):
    """FPN's plain sum."""

    has_identity = True

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return x as it is."""
        return x


class GCG(OwnStart, Gate):
    """Gated channel guidance of one level: X * sigmoid(FC1(mean over width) FC2(mean over height)).

    The product of the two strips is the outer product, channel by channel; no residual.

    Args:
        channels: channels of the map.
        identity: the gate is 1 + tanh in place of the sigmoid, see `start_as_identity`.
        linear: its layers start as linear ones do, not from Xavier's weights.
    """

    has_identity = True

    def __init__(self, channels: int, *, identity: bool = False, linear: bool = False) -> None:
        super().__init__()
        self.identity, self.linear = identity, linear
        self.rows = nn.Conv2d(channels, channels, 1)
        self.columns = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, H, W)."""
        over_width, over_height = strip_means(x)
        rows: Tensor = self.rows(over_width)  # (B, C, H, 1)
        columns: Tensor = self.columns(over_height)  # (B, C, 1, W)
        if self.identity:
            return x.addcmul(x, (rows * columns).tanh_())
        return (rows * columns).sigmoid_() * x

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        scores = outputs["rows"][0] * outputs["columns"][0]
        gate = scores.tanh() / 2 + 0.5 if self.identity else scores.sigmoid()
        return [InnerMap("GCG gate", "gate", gate)]

    def start(self, generator: torch.Generator | None) -> None:
        """Where asked for, weights and biases between -1 and 1 over the root of the channels."""
        for layer in (self.rows, self.columns) if self.linear else ():
            bound = layer.in_channels**-0.5
            assert layer.bias is not None
            for tensor in (layer.weight, layer.bias):
                nn.init.uniform_(tensor, -bound, bound, generator=generator)

    def start_as_identity(self) -> None:
        """Make the product of the strips zero; its other factor stays, so that it can learn."""
        nn.init.zeros_(self.rows.weight)
        assert self.rows.bias is not None
        nn.init.zeros_(self.rows.bias)


class CAG(Gate):
    """Channel attention guided module of CE-FPN (arXiv 2103.10643, section 3.3), on a single map.

    x * sigmoid(relu(FC1(avg)) + relu(FC2(max))), pooled over the whole map. In CE-FPN one such weight vector
    is made from an integrated map for all levels; here it is made from the level that it gates.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_avg = nn.Conv2d(channels, channels, 1)
        self.fc_max = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, H, W) by channel."""
        return x * self.weight(x)

    def weight(self, x: Tensor) -> Tensor:
        """The weights (B, C, 1, 1) that x (B, C, H, W) gives."""
        average: Tensor = self.fc_avg(x.mean(dim=(2, 3), keepdim=True)).relu()
        maximum: Tensor = self.fc_max(x.amax(dim=(2, 3), keepdim=True)).relu()
        return (average + maximum).sigmoid()

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        weight = (outputs["fc_avg"][0].relu() + outputs["fc_max"][0].relu()).sigmoid()
        return [InnerMap("CAG gate", "channels", weight)]


class CoordinateAttention(Gate):
    """Coordinate Attention (arXiv 2103.02907, section 3.2): two strip poolings and sigmoids, reduction 32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 32)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden), nn.Hardswish(inplace=True)
        )
        self.rows = nn.Conv2d(hidden, channels, 1)
        self.columns = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, H, W) by row and by column."""
        height, width = x.shape[-2:]
        over_width, over_height = strip_means(x)
        strips = torch.cat([over_width, over_height.transpose(2, 3)], dim=2)  # (B, C, H + W, 1)
        rows, columns = self.shared(strips).split([height, width], dim=2)
        gate_rows: Tensor = self.rows(rows).sigmoid()  # (B, C, H, 1)
        gate_columns: Tensor = self.columns(columns).sigmoid().transpose(2, 3)  # (B, C, 1, W)
        return x * gate_rows * gate_columns

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        rows, columns = outputs["rows"][0].sigmoid(), outputs["columns"][0].sigmoid()
        return [InnerMap("Coordinate Attention gate", "gate", rows * columns.transpose(2, 3))]


class CBAM(Gate):
    """CBAM (arXiv 1807.06521, equations 2 and 3): a channel gate, then a spatial gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = rounded_width(channels, 16)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1, momentum=0.01)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (B, C, H, W) by channel, then by cell."""
        average: Tensor = self.mlp(x.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        maximum: Tensor = self.mlp(x.amax(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        x = x * (average + maximum).sigmoid()
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)  # (B, 2, H, W)
        gate: Tensor = self.spatial(pooled).sigmoid()  # (B, 1, H, W)
        return x * gate

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        average, maximum = outputs["mlp"]
        weight = (average + maximum).sigmoid() * outputs["spatial"][0].sigmoid()
        return [InnerMap("CBAM gate", "gate", weight)]


class GMU(Gate):
    """Gated multimodal unit (arXiv 1702.01992, section 3.1) of a level and the one above.

    h = z * tanh(W1 local) + (1 - z) * tanh(W2 above), z = sigmoid(Wz [local; above]).
    """

    joins = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 1)
        self.above = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def fuse(self, local: Tensor, above: Tensor) -> Tensor:
        """Blend two maps (B, C, H, W) cell by cell, channel by channel."""
        z = self.gate(torch.cat([local, above], dim=1)).sigmoid()
        return torch.lerp(self.above(above).tanh(), self.local(local).tanh(), z)

    def inner_maps(self, outputs: dict[str, list[Tensor]]) -> list[InnerMap]:
        """See `InnerMap`."""
        return [InnerMap("GMU gate", "gate", outputs["gate"][0].sigmoid())]


GATES: dict[str, type[GCG | CAG | CoordinateAttention | CBAM | GMU | NoGate]] = {
    "gcg": GCG,
    "cag": CAG,
    "coordinate": CoordinateAttention,
    "cbam": CBAM,
    "gmu": GMU,
    "none": NoGate,
}
