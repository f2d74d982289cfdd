"""What is counted over the batches of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msefpn.training.clock import Clock
from msefpn.training.position import Position, Statistics


class EpochCounts:
    """Sums and numbers of the epoch that is trained, those from before an interruption included.

    Args:
        clock: counts its images.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sums: Counter[str] = Counter()
        self.batches = self.total = 0
        self.statistics: Statistics = []
        """Of all processes, as they were gathered last."""

    @property
    def whole(self) -> bool:
        """Whether all batches are done."""
        return self.batches >= self.total

    def begin(self, total: int, position: Position | None = None) -> None:
        """Begin an epoch of so many batches, or go on with it where an earlier process was."""
        self.sums.clear()
        self.clock.start_epoch()
        self.batches, self.total, self.statistics = 0, total, []
        if position is not None:
            self.sums.update(position.sums)
            self.batches, self.statistics = position.batches, position.statistics
            self.clock.start_epoch(position.images, position.seconds)

    def means(self) -> dict[str, float]:
        """Mean of each loss over the batches."""
        return {name: value / self.batches for name, value in sorted(self.sums.items())}

    def add(self, values: Mapping[str, float], images: int, part: float) -> None:
        """Count a batch of so many images, after which this process has done this part of the epoch, 0..1."""
        self.sums.update(values)
        self.clock.seen(images, part)

    def position(self) -> Position:
        """How far the epoch is."""
        images, seconds = self.clock.images, self.clock.training
        return Position(self.batches, self.total, images, seconds, dict(self.sums), self.statistics)
