"""How fast a training is, and how long it still takes."""

from __future__ import annotations

import time


class Clock:
    """Counts images of an epoch's training, and the time of the run, evaluations included.

    Args:
        epochs: epochs that this process trains; a fraction where it stops within one.
    """

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs
        self.began = self.epoch_began = time.monotonic()
        self.images = self.done = 0
        self.training = 0.0
        self.fraction = 0.0

    def start_epoch(self) -> None:
        """Begin to count the images of an epoch."""
        self.epoch_began, self.images = time.monotonic(), 0

    def seen(self, images: int, part: float) -> None:
        """Count the images of a step, after which this part of the epoch, 0..1, is done."""
        self.images += images
        self.training = time.monotonic() - self.epoch_began
        self.fraction = (self.done + part) / self.epochs

    def end_epoch(self) -> None:
        """Count an epoch."""
        self.done += 1

    @property
    def images_per_second(self) -> float:
        """Of this epoch's training."""
        return self.images / max(self.training, 1e-9)

    @property
    def left(self) -> float:
        """Seconds to the end of the run."""
        return (time.monotonic() - self.began) * (1 / max(self.fraction, 1e-9) - 1)
