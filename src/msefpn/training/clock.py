"""How fast a training is, and how long it still takes."""

from __future__ import annotations

import time


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
