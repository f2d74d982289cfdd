"""What is counted over the batches of an epoch, how fast they are, and how long the run still takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from msefpn.training.position import Position, Statistics


class Clock:
    """Counts images of an epoch's training, and the time of the run, evaluations included.

    Args:
        epochs: epochs that this process trains; a fraction where it begins or stops within one.
    """

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs
        self.began = self.epoch_began = time.monotonic()
        self.images = 0
        self.done = self.part = 0.0
        self.training = 0.0
        self.fraction = 0.0

    def start_epoch(self, images: int = 0, training: float = 0.0) -> None:
        """Begin to count the images of an epoch, after those that another process has trained on."""
        self.epoch_began, self.images, self.training = time.monotonic() - training, images, training

    def seen(self, images: int, part: float) -> None:
        """Count the images of a step, after which this process has done this part of the epoch, 0..1."""
        self.images += images
        self.training = time.monotonic() - self.epoch_began
        self.part = part
        self.fraction = (self.done + part) / self.epochs

    def end_epoch(self) -> None:
        """Count an epoch, or the part of it that this process has done."""
        self.done, self.part = self.done + self.part, 0.0

    @property
    def images_per_second(self) -> float:
        """Of this epoch's training."""
        return self.images / max(self.training, 1e-9)

    @property
    def left(self) -> float:
        """Seconds to the end of the run."""
        return (time.monotonic() - self.began) * (1 / max(self.fraction, 1e-9) - 1)


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
