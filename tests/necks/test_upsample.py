"""The upsamplers: their sizes as published, and their equations written out a second time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from msefpn.necks import BFP, FPN, MSEFPN, NECKS, BiFPN
from msefpn.necks.freq_fusion import _similarities
from msefpn.necks.upsample import UPSAMPLERS, make_upsampler, reassembled, sample_at

SIZES = {
    "nearest": 0,
    "bilinear": 0,
    "carafe": 64 * 256 + 64 + 100 * 64 * 9 + 100,
    "dysample": 32 * 256 + 32,
    "dysample_plus": 2 * 32 * 256 + 32,
    "dysample_s": 8 * 64 + 8,
    "dysample_s_plus": 2 * 8 * 64 + 8,
}
"""Parameters at 256 channels. DySample+ four times over is the 65 K that its paper gives."""


def given(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(2, 16, 5, 7), torch.empty(2, 3, 9, 14)


def test_the_sizes_are_those_published() -> None:
    found = {name: sum(x.numel() for x in make_upsampler(name, 256).parameters()) for name in UPSAMPLERS}
    assert found == SIZES
    assert 4 * found["dysample_plus"] == 65_664


def test_carafe_costs_what_its_paper_says() -> None:
    """Section 3.3: 199 k operations, two for a multiplication and a sum, for each cell at 256 channels."""
    carafe = make_upsampler("carafe", 256).to("meta")
    with FlopCounterMode(display=False) as counter:
        carafe(torch.empty(1, 256, 8, 8, device="meta"), torch.empty(1, 1, 16, 16, device="meta"))
    convolutions = counter.get_total_flops() / 64 + 2 * 64 + 2 * 100  # the paper counts biases too
    assert convolutions + 2 * 4 * 25 * 256 == pytest.approx(199_496)


@pytest.mark.parametrize("name", UPSAMPLERS)
def test_any_size_is_given(name: str) -> None:
    upsampler = make_upsampler(name, 16)
    for height, width in ((9, 14), (10, 13), (11, 15), (4, 6)):
        x, _ = given()
        assert upsampler(x, torch.empty(2, 1, height, width)).shape == (2, 16, height, width)
    one = upsampler(torch.randn(1, 16, 1, 1), torch.empty(1, 1, 2, 2))
    assert one.shape == (1, 16, 2, 2)


def test_carafe_weighs_the_cells_around() -> None:
    x, like = given()
    carafe: Any = make_upsampler("carafe", 16)
    torch.nn.init.normal_(carafe.encode.weight)
    found = carafe(x, like)
    kernels = F.pixel_shuffle(carafe.encode(carafe.compress(x)), 2).softmax(dim=1)
    padded = F.pad(x, [2, 2, 2, 2])
    for row, column in ((0, 0), (3, 8), (8, 13), (5, 2)):
        around = padded[1, :, row // 2 : row // 2 + 5, column // 2 : column // 2 + 5]
        expected = (around.flatten(1) * kernels[1, :, row, column]).sum(dim=1)
        torch.testing.assert_close(found[1, :, row, column], expected)


@pytest.mark.parametrize("name", ["dysample", "dysample_plus", "dysample_s", "dysample_s_plus"])
def test_dysample_begins_as_bilinear_and_moves(name: str) -> None:
    x, like = given()
    dysample: Any = make_upsampler(name, 16)
    torch.nn.init.zeros_(dysample.offset.weight)
    torch.nn.init.zeros_(dysample.offset.bias)
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear")[:, :, :9]
    torch.testing.assert_close(dysample(x, like), bilinear)
    torch.nn.init.constant_(dysample.offset.bias, 4.0)  # of 0.25 each
    if dysample.scope is not None:
        torch.nn.init.zeros_(dysample.scope.weight)
    moved = dysample(x, like)
    torch.testing.assert_close(moved[:, :, 1:5, 1:9], bilinear[:, :, 3:7, 3:11])  # by a cell


def test_reassembling_looks_as_far_as_it_is_told() -> None:
    x = torch.arange(49.0).view(1, 1, 1, 7, 7)
    kernels = torch.zeros(1, 9, 1, 7, 7)
    kernels[:, 5] = 1  # the right neighbour
    near, far = reassembled(x, kernels), reassembled(x, kernels, dilation=2)
    assert torch.equal(near[..., :-1], x[..., 1:])
    assert torch.equal(far[..., :-2], x[..., 2:])
    assert not far[..., -2:].any()


def test_sampling_reads_x_before_y() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    offset = torch.zeros(1, 1, 2, 3, 4)
    torch.testing.assert_close(sample_at(x, offset), x)
    offset[:, :, 0] = 1.0
    torch.testing.assert_close(sample_at(x, offset)[..., :-1], x[..., 1:])


def test_similarities_are_cosines() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 4, 5)
    found = _similarities(x)
    assert found.shape == (1, 8, 4, 5)
    expected = F.cosine_similarity(x[0, :, 2, 2], x[0, :, 1, 1], dim=0)
    torch.testing.assert_close(found[0, 0, 2, 2], expected)
    assert not found[0, 0, 0].any()


@pytest.mark.parametrize("name", [name for name in NECKS if name not in ("bfp", "bifpn", "afpn")])
def test_a_norm_stands_on_the_laterals(name: str) -> None:
    torch.manual_seed(0)
    options = {"sem": "none", "gate": "none"} if name == "mse_fpn" else {}
    make: Any = NECKS[name]
    neck = make([16, 24, 40, 64], [4, 8, 16, 32], 32, norm="gn", **options)
    norms = [x for x in neck.modules() if isinstance(x, torch.nn.GroupNorm) and x.num_channels == 32]
    assert len(norms) >= 4 - (name == "ce_fpn")
    with pytest.raises(ValueError, match="norm 'bn' is unknown: known: none, gn"):
        make([16, 24, 40, 64], [4, 8, 16, 32], 32, norm="bn", **options)


@pytest.mark.parametrize(
    ("neck", "options", "says"),
    [
        (FPN, {"upsample": "linear"}, "upsample 'linear' is unknown: known: nearest, bilinear"),
        (FPN, {"upsample": "dysample", "out_channels": 30}, "dysample divides channels by 4: 30"),
        (BiFPN, {"upsample": "linear"}, "upsample 'linear' is unknown"),
        (MSEFPN, {"gate_init": "linear", "gate": "cag"}, "gate_init 'linear' is GCG's: gate 'cag' needs"),
        (MSEFPN, {"gate": "gmu", "gate_at": "after"}, "gate 'gmu' joins two maps: it needs gate_at 'merged'"),
        (MSEFPN, {"attention": "mix", "sem": "channel"}, "attention 'mix' needs the spatial branch"),
    ],
)
def test_what_does_not_go_together_is_refused(neck: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        neck([16, 24, 40], [4, 8, 16], **options)


def test_a_neck_without_a_top_down_path_has_no_upsampler() -> None:
    with pytest.raises(TypeError, match="upsample"):
        BFP([32] * 3, [4, 8, 16], 32, upsample="carafe")  # type: ignore[call-arg]
