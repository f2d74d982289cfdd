"""Backbones of caffe style: strides in the first 1x1 convolution, mean and deviation of one's own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msefpn.errors import UserError
from msefpn.models.backbone import make_backbone


def by_hand(block: torch.nn.Module, x: Tensor, stride: int) -> Tensor:
    """A bottleneck with its stride in the first convolution, as MSRA published it (arXiv 1512.03385)."""
    state = block.state_dict()

    def normalised(y: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(y, mean, var, weight, bias, eps=1e-5)

    y = F.relu(normalised(F.conv2d(x, state["conv1.weight"], stride=stride), "bn1"))
    y = F.relu(normalised(F.conv2d(y, state["conv2.weight"], padding=1), "bn2"))
    y = normalised(F.conv2d(y, state["conv3.weight"]), "bn3")
    short = normalised(F.conv2d(x, state["downsample.0.weight"], stride=stride), "downsample.1")
    return F.relu(y + short)


def test_strides_in_the_first_convolution() -> None:
    torch.manual_seed(0)
    backbone = make_backbone("resnet50", stride_in_1x1=True).eval()
    for name, buffer in backbone.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    block = backbone.body.layer2[0]
    x = torch.randn(1, 256, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_hand(block, x, 2), atol=1e-4, rtol=1e-4)
        first = backbone.body.layer1[0]
        torch.testing.assert_close(first(x[:, :64]), by_hand(first, x[:, :64], 1), atol=1e-4, rtol=1e-4)
    strides = [
        (b.conv1.stride[0], b.conv2.stride[0]) for b in (backbone.body.layer3[0], backbone.body.layer3[1])
    ]
    assert strides == [(2, 1), (1, 1)]


def test_mean_and_deviation() -> None:
    backbone = make_backbone("test_resnet", mean=[1, 2, 3], std=[1.0, 1.0, 2.0])
    assert (backbone.mean, backbone.std) == ([1.0, 2.0, 3.0], [1.0, 1.0, 2.0])


@pytest.mark.parametrize(
    "options", [{"std": [1, 1]}, {"std": [1, 0, 1]}, {"mean": "grey"}, {"mean": [1, 2, "x"]}]
)
def test_wrong_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give three numbers"):
        make_backbone("test_resnet", **options)


def test_no_bottleneck() -> None:
    with pytest.raises(UserError, match="resnet18 is not one"):
        make_backbone("resnet18", stride_in_1x1=True)
