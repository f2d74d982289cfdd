"""Necks that start as an FPN: its pyramid at first, and every parameter learns."""

from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.necks import FPN, MSEFPN, ResMSEFPN

CHANNELS = [16, 24, 40, 64]
STRIDES = [4, 8, 16, 32]
LEVELS = {"start_level": 1, "extra_levels": "conv_c5"}
FPNS = (*LEVELS, "norm", "upsample")
"""Options that are FPN's too."""
IDENTITY: dict[str, dict[str, Any]] = {
    "shared": {},
    "lean": {"preset": "lean"},
    "split": {"preset": "split"},
    "wide": {"sim": "wide"},
    "add": {"sim": "add"},
    "no semantics": {"sem": "none"},
    "no gate": {"gate": "none"},
    "lateral": {"gate_at": "lateral"},
    "levels": LEVELS,
}
RESIDUAL: dict[str, dict[str, Any]] = {
    "all": {},
    "levels": LEVELS,
    "norm": {"norm": "gn"},
    "no semantics": {"semantics": 0},
    "no gates": {"gates": False},
    "upsample": {"norm": "gn", "upsample": "dysample"},
}
VARIANTS: dict[str, tuple[type[MSEFPN | ResMSEFPN], dict[str, Any]]] = {
    **{name: (MSEFPN, {"start": "identity", **options}) for name, options in IDENTITY.items()},
    **{f"residual, {name}": (ResMSEFPN, options) for name, options in RESIDUAL.items()},
}


def maps(height: int = 75, width: int = 101) -> list[Tensor]:
    torch.manual_seed(1)
    sides = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(2, c, *side) for c, side in zip(CHANNELS, sides, strict=True)]


def upgraded(kind: type[MSEFPN | ResMSEFPN], options: dict[str, Any]) -> tuple[FPN, MSEFPN | ResMSEFPN]:
    torch.manual_seed(0)
    fpn = FPN(CHANNELS, STRIDES, 32, **{key: options[key] for key in FPNS if key in options})
    for parameter in fpn.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # a trained one's biases are not zero
    neck = kind(CHANNELS, STRIDES, 32, **options)
    neck.start_from(fpn)
    return fpn, neck


@pytest.mark.parametrize("variant", VARIANTS)
def test_pyramid_is_the_fpns(variant: str) -> None:
    fpn, neck = upgraded(*VARIANTS[variant])
    for height, width in ((75, 101), (33, 50), (128, 96)):
        features = maps(height, width)
        for x, y in zip(neck(features), fpn(features), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_by_the_second_step(variant: str) -> None:
    _, neck = upgraded(*VARIANTS[variant])
    optimizer = torch.optim.SGD(neck.parameters(), lr=1e-3)
    target = torch.manual_seed(2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = [(x * torch.randn(x.shape, generator=target)).sum() for x in neck(maps())]
        torch.stack(loss).sum().backward()
        zero = [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()]
        optimizer.step()
    assert zero == []


def test_same_tensors_as_the_papers() -> None:
    own = MSEFPN(CHANNELS, STRIDES, 32, start="identity").state_dict()
    papers = MSEFPN(CHANNELS, STRIDES, 32).state_dict()
    assert {name: x.shape for name, x in own.items()} == {name: x.shape for name, x in papers.items()}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"gate": "cbam"},
            "start 'identity' is not possible with gate 'cbam': it needs gate 'gcg' or 'none'",
        ),
        ({"start": "zero"}, "start 'zero' is unknown: known: paper, identity"),
    ],
)
def test_what_cannot_start_so(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MSEFPN(CHANNELS, STRIDES, 32, **{"start": "identity", **options})


def test_what_it_cannot_start_from() -> None:
    fpn = FPN(CHANNELS, STRIDES, 32)
    with pytest.raises(ValueError, match="start is 'paper'"):
        MSEFPN(CHANNELS, STRIDES, 32).start_from(fpn)
    with pytest.raises(ValueError, match=r"out_channels is 16, the FPN's is 32"):
        MSEFPN(CHANNELS, STRIDES, 16, start="identity").start_from(fpn)
    first, second = ("conv_c5", "conv_p5_relu")
    with pytest.raises(ValueError, match="extra_levels"):
        MSEFPN(CHANNELS, STRIDES, 32, start="identity", extra_levels=first).start_from(
            FPN(CHANNELS, STRIDES, 32, extra_levels=second)
        )
