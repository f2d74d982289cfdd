"""Gradients of convolutions: equal to torch's own, of all pixels and of few."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models import conv_backward as module
from msefpn.models.conv_backward import conv_backward, pick_method

CPU = torch.device("cpu")
CASES = {  # height, width, kernel, stride, padding
    "as in a neck": (33, 47, (3, 3), 1, 1),
    "stride 2, odd": (33, 47, (3, 3), 2, 1),
    "stride 2, even": (32, 40, (3, 3), 2, 1),
    "5 x 5": (20, 21, (5, 5), 1, 2),
    "7 x 7, stride 2": (40, 41, (7, 7), 2, 3),
    "patches": (31, 30, (2, 2), 2, 0),
    "no padding": (30, 31, (3, 3), 1, 0),
    "stride 3": (31, 30, (3, 3), 3, 1),
    "one side": (31, 30, (1, 3), 1, (0, 1)),
    "small, mostly padding": (4, 5, (3, 3), 1, 1),
}


def gradients(
    conv: nn.Conv2d, x: Tensor, gradient: Tensor, method: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of input, weight and bias."""
    x = x.detach().requires_grad_()
    conv.zero_grad()
    with conv_backward(method, CPU):
        y = conv(x)
    y.backward(gradient)
    assert conv.bias is not None
    return x.grad, conv.weight.grad, conv.bias.grad


@pytest.mark.parametrize("few", [False, True], ids=["all pixels", "few pixels"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_torchs(name: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PADDING", 3)
    called = []
    for part in ("weight_gradient", "_gradients_of_few"):
        own = getattr(module, part)
        monkeypatch.setattr(module, part, lambda *a, own=own, part=part: (called.append(part), own(*a))[1])
    torch.manual_seed(0)
    height, width, size, stride, padding = CASES[name]
    conv = nn.Conv2d(16, 24, size, stride, padding).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, height, width).to(memory_format=torch.channels_last)
    gradient = torch.randn_like(conv(x))
    if few:
        gradient *= torch.rand(2, 1, *gradient.shape[2:]) < 0.02
        gradient[:, :, -1, -1] = 1
    expected = gradients(conv, x, gradient, "library")
    assert not called
    for found, own in zip(gradients(conv, x, gradient, "matmul"), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, own, atol=1e-3, rtol=1e-4)
    assert called == ["_gradients_of_few" if few else "weight_gradient"]


def test_without_any_gradient_all_are_zero() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    found = gradients(conv, torch.randn(1, 16, 9, 9), torch.zeros(1, 16, 9, 9), "auto")
    assert not any(x.any() for x in found if x is not None)


def test_parts_that_need_no_gradient_get_none() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    with conv_backward("matmul", CPU):
        conv(torch.randn(1, 16, 40, 40)).sum().backward()  # the images need none
        assert conv.weight.grad is not None
        conv.weight.requires_grad_(False)
        x = torch.randn(1, 16, 40, 40, requires_grad=True)
        y = conv(x)
    assert type(y.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 16, 3, dilation=2),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 16, 3).double(),
    ],
    ids=str,
)
def test_others_stay_torchs(conv: nn.Conv2d) -> None:
    with conv_backward("matmul", CPU):
        y = conv(torch.randn(1, conv.in_channels, 20, 20, dtype=conv.weight.dtype))
    assert "Convolution" in type(y.grad_fn).__name__
    assert type(y.grad_fn).__name__ != "_ConvolutionBackward"
    with conv_backward("matmul", CPU), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.conv2d(torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3)).dtype == torch.bfloat16


def test_the_method_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, method in (("AVX2", "matmul"), ("AVX512", "library"), ("DEFAULT", "library")):
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        assert pick_method("auto", CPU) == method
        assert pick_method("auto", torch.device("cuda")) == "library"
        assert pick_method("matmul", CPU) == "matmul"
