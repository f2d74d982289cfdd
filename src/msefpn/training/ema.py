"""The exponential moving average of a module's weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Averages weights and buffers after each step.

    The decay of step n is min(decay, (1 + n) / (10 + n)), so that a short run does not keep its random start
    (the rule of TensorFlow's ExponentialMovingAverage). Integers are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in module.state_dict().items()
        }
        self.aside: dict[str, Tensor] | None = None
        """The module's own weights while the averages are in their place."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.module.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the averages of an earlier run, on the module's device."""
        current = self.module.state_dict()
        self.weights = {name: value.to(current[name].device, copy=True) for name, value in weights.items()}

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the averages into the module for as long as the body runs."""
        self.aside = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.module.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.module.load_state_dict(self.aside)
            self.aside = None
