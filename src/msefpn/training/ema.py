"""The exponential moving average of a module's weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        current = self.module.state_dict()
        floating = [name for name, value in current.items() if value.is_floating_point()]
        average([self.weights[name] for name in floating], [current[name] for name in floating], step)
        for name in current.keys() - set(floating):
            self.weights[name].copy_(current[name])

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
