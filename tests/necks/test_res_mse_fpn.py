"""Residual MSE-FPN: its parts as its docstrings have them; that it starts as an FPN: test_identity_start."""

from typing import Any

import pytest
import torch
from torch import Tensor

from msefpn.necks import FPN, ResMSEFPN
from msefpn.necks.res_mse_fpn import Injection, StripGate, Tokens

CHANNELS = [16, 24, 40, 64]
STRIDES = [4, 8, 16, 32]


def maps(height: int = 75, width: int = 101) -> list[Tensor]:
    torch.manual_seed(1)
    sides = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(2, c, *side) for c, side in zip(CHANNELS, sides, strict=True)]


@pytest.mark.parametrize("norm", ["none", "gn"])
def test_it_starts_as_the_fpn_of_its_seed(norm: str) -> None:
    torch.manual_seed(0)
    neck = ResMSEFPN(CHANNELS, STRIDES, 32, norm=norm)
    fpn = FPN(CHANNELS, STRIDES, 32, norm=norm)
    fpn.load_state_dict({name: x for name, x in neck.state_dict().items() if name in fpn.state_dict()})
    for x, y in zip(neck(maps()), fpn(maps()), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_it_costs_less_than_a_million_parameters() -> None:
    with torch.device("meta"):
        r50 = [256, 512, 1024, 2048]
        own, fpn = ResMSEFPN(r50, STRIDES), FPN(r50, STRIDES)
    own_size, fpn_size = (sum(p.numel() for p in neck.parameters()) for neck in (own, fpn))
    assert own_size - fpn_size == 592_000 + 198_144 + 99_936


def test_parts_are_as_their_equations() -> None:
    torch.manual_seed(0)
    x, finer, semantics = torch.randn(2, 32, 4, 6), torch.randn(2, 32, 8, 11), torch.randn(2, 16, 2, 3)
    inject = Injection(16, 32)
    resize = torch.nn.Upsample((4, 6), mode="bilinear")
    expected = x * (1 + resize(inject.gate(semantics).tanh())) + resize(inject.embedding(semantics))
    torch.testing.assert_close(inject(x, semantics), expected)
    gate = StripGate(32)
    gated = gate(x, finer)
    assert gated.shape == x.shape
    ratio = (gated / x - 1)[0, 5]  # the outer product of a column and a row
    torch.testing.assert_close(ratio[0, 0] * ratio[2, 3], ratio[0, 3] * ratio[2, 0], atol=1e-4, rtol=1e-3)


def test_tokens_see_the_whole_map() -> None:
    torch.manual_seed(0)
    tokens, features = Tokens(CHANNELS[1:], 16), [x.requires_grad_() for x in maps(128, 160)[1:]]
    semantics = tokens(features)
    assert semantics.shape == (2, 16, 2, 3)
    semantics[0, :, 0, 0].sum().backward()
    gradient = features[0].grad
    assert gradient is not None
    assert gradient[0, :, -1, -1].any()
    assert not gradient[1].any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "bn"}, "norm 'bn' is unknown: known: none, gn"),
        ({"semantics": 30}, "semantics 30 must be 0 or a multiple of 4"),
        ({"upsample": "cubic"}, "upsample 'cubic' is unknown"),
    ],
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ResMSEFPN(CHANNELS, STRIDES, 32, **options)


@pytest.mark.parametrize(
    ("fpn", "says"),
    [
        ({"norm": "gn"}, "norm is none, the FPN's is gn: they must be the same"),
        ({"upsample": "bilinear"}, "upsample is nearest, the FPN's is bilinear"),
        ({"out_channels": 16}, "out_channels is 32, the FPN's is 16"),
        ({"extra_levels": "pool"}, "out_strides is"),
    ],
)
def test_another_fpn_is_refused(fpn: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ResMSEFPN(CHANNELS, STRIDES, 32).start_from(FPN(CHANNELS, STRIDES, **{"out_channels": 32, **fpn}))
