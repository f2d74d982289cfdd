"""Counting of what a model does."""

import torch
from torch import Tensor, nn

from msefpn.metrics.cost import count_work


class Two(nn.Module):
    """A convolution and an activation, and something between them that is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 1)
        self.activation = nn.Sequential(nn.Flatten(), nn.ReLU())
        self.idle = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.convolution(x) + 1)
        return y


def test_work_of_each_part() -> None:
    model = Two()
    work = count_work(model, lambda: model(torch.zeros(1, 2, 4, 5)))
    assert set(work) == {"convolution", "activation"}
    assert work["convolution"].operators == [(2 * 3 * 20, 4 * (2 * 20 + 2 * 3 + 3 + 3 * 20))]
    assert work["activation"].operators == [(0, 4 * 2 * 3 * 20)]  # to flatten moves nothing
    assert (work["convolution"].macs, work["activation"].moved) == (120, 480)
    assert not model.convolution._forward_hooks
    assert not model.convolution._forward_pre_hooks
