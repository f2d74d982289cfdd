"""Convolutions and their gradients: equal to torch's own, of all pixels and of few."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msefpn.models import convolution as module
from msefpn.models.convolution import convolutions, pick_method
from msefpn.models.winograd import conv3x3
from msefpn.structures import Targets
from tests.models.test_graph import batch, make

CPU = torch.device("cpu")
LEAST = dict.fromkeys(("AVX2", "AVX512", torch.backends.cpu.get_cpu_capability()), 16)
"""Channels for which a convolution is done as products of sums."""
CASES: dict[str, tuple[int, int, Any, int, Any]] = {  # height, width, kernel, stride, padding
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


def noting(name: str, function: Callable[..., Any], called: list[str]) -> Callable[..., Any]:
    """The function, which notes each call."""

    def run(*arguments: Any) -> Any:
        called.append(name)
        return function(*arguments)

    return run


def gradients(
    conv: nn.Conv2d, x: Tensor, gradient: Tensor, method: str
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of input, weight and bias."""
    x = x.detach().requires_grad_()
    conv.zero_grad()
    with convolutions(method, CPU):
        y = conv(x)
    y.backward(gradient)
    assert conv.bias is not None
    return x.grad, conv.weight.grad, conv.bias.grad


@pytest.mark.parametrize("few", [False, True], ids=["all pixels", "few pixels"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_torchs(name: str, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PADDING", 3)
    monkeypatch.setattr(module, "_WINOGRAD_CHANNELS", LEAST)
    monkeypatch.setattr(module, "_WINOGRAD_PIXELS", 0)
    called: list[str] = []
    for part in ("weight_gradient", "_gradients_of_few"):
        monkeypatch.setattr(module, part, noting(part, getattr(module, part), called))
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
    for found, own in zip(gradients(conv, x, gradient, "products"), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found, own, atol=1e-3, rtol=1e-4)
    assert called == ["_gradients_of_few" if few else "weight_gradient"]


def test_without_any_gradient_all_are_zero() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1)
    found = gradients(conv, torch.randn(1, 16, 9, 9), torch.zeros(1, 16, 9, 9), "auto")
    assert not any(x.any() for x in found if x is not None)


def test_parts_that_need_no_gradient_get_none() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    with convolutions("products", CPU):
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
    with convolutions("products", CPU):
        y = conv(torch.randn(1, conv.in_channels, 20, 20, dtype=conv.weight.dtype))
    assert "Convolution" in type(y.grad_fn).__name__
    assert type(y.grad_fn).__name__ != "_ConvolutionBackward"
    with convolutions("products", CPU), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.conv2d(torch.randn(1, 16, 9, 9), torch.randn(16, 16, 3, 3)).dtype == torch.bfloat16


def test_the_method_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, method in (("AVX2", "products"), ("AVX512", "library"), ("DEFAULT", "library")):
        monkeypatch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability
        )
        assert pick_method("auto", CPU) == method
        assert pick_method("auto", torch.device("cuda")) == "library"
        assert pick_method("products", CPU) == "products"


@pytest.mark.parametrize("shape", [(1, 40, 44), (3, 7, 9), (2, 1, 1), (1, 2, 401), (9, 4, 4)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_winograd_is_a_convolution(shape: tuple[int, int, int], bias: bool) -> None:
    torch.manual_seed(0)
    batch, height, width = shape
    conv = nn.Conv2d(20, 36, 3, padding=1, bias=bias).double()
    x = torch.randn(batch, 20, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(conv3x3(x, conv.weight, conv.bias), conv(x), atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_one_pixel_of_a_large_map(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ONEDNN_PIXELS", 100)
    called: list[str] = []
    monkeypatch.setattr(torch, "mkldnn_convolution", noting("onednn", torch.mkldnn_convolution, called))
    conv = nn.Conv2d(16, 24, 1, bias=bias)
    for side in (9, 11):
        x = torch.randn(2, 16, side, side).to(memory_format=torch.channels_last)
        expected = conv(x)
        with convolutions("products", CPU):
            found = conv(x)
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()
    assert called == ["onednn"], "small maps stay torch's"


@torch.no_grad()
def test_a_detector_detects_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WINOGRAD_CHANNELS", LEAST)
    called: list[str] = []
    monkeypatch.setattr(module, "conv3x3", noting("conv3x3", conv3x3, called))
    detector, given = make("faster_rcnn"), batch("faster_rcnn", 1, 160, 192, 158, 190)
    found = []
    for method in ("library", "products"):
        assert not called
        detector.convolution = method
        found.append(detector(*given))
    assert called
    count = int(found[0].valid.sum())
    torch.testing.assert_close(found[1].scores[:, :count], found[0].scores[:, :count], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_a_detector_learns_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, least in (("_WINOGRAD_CHANNELS", LEAST), ("_WINOGRAD_PIXELS", 0), ("_MOST_PADDING", 3)):
        monkeypatch.setattr(module, part, least)
    called: list[str] = []
    for part in ("weight_gradient", "_gradients_of_few", "conv3x3"):
        monkeypatch.setattr(module, part, noting(part, getattr(module, part), called))
    detector = make(name).train()
    images, sizes = batch(name, 2, 96, 128, 90, 128)[:2]
    boxes = torch.tensor([[[10.0, 12, 50, 60], [70, 20, 120, 88]], [[30, 5, 90, 85], [0, 0, 0, 0]]])
    targets = Targets(boxes, torch.tensor([[0, 2], [1, 0]]), torch.tensor([[True, True], [True, False]]))
    found = []
    for method in ("library", "products"):
        assert not called
        detector.convolution = method
        detector.zero_grad()
        torch.manual_seed(0)
        losses = detector.losses(images, sizes, targets)
        torch.stack([*losses.values()]).sum().backward()
        found.append({key: x.grad for key, x in detector.named_parameters() if x.grad is not None})
    assert set(called) == {"weight_gradient", "_gradients_of_few", "conv3x3"}
    expected, own = found
    assert own.keys() == expected.keys()
    for key, gradient in expected.items():
        error = (own[key] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 1e-2, f"{key}: {error:.1e}"
