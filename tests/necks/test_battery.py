"""One battery over every neck: whatever stands in NECKS keeps the contract."""

from collections.abc import Callable
from typing import Any

import pytest

from msefpn.necks import GATES, NECKS, Neck, Stack
from msefpn.testing import check_neck

CHANNELS = [16, 24, 40, 64]
STRIDES = [4, 8, 16, 32]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in NECKS} | {
    "pafpn-retina": ("pafpn", {"start_level": 1, "extra_levels": "conv_c5"}),
    "bifpn-retina": ("bifpn", {"start_level": 1, "extra_levels": "conv_c5", "weighted": False}),
    "ce_fpn-retina": ("ce_fpn", {"start_level": 1, "extra_levels": "conv_c5"}),
    "ac_fpn-deformable": ("ac_fpn", {"deformable": True, "attention": False}),
    "fpn+bfp": ("fpn+bfp", {"extra_levels": "pool"}),
    "fpn-carafe": ("fpn", {"norm": "gn", "upsample": "carafe"}),
    "mse_fpn-split": ("mse_fpn", {"preset": "split"}),
    "mse_fpn-lean": ("mse_fpn", {"preset": "lean"}),
    "mse_fpn-retina": (
        "mse_fpn",
        {"start_level": 1, "extra_levels": "conv_c5", "sim": "wide", "start": "identity"},
    ),
    "mse_fpn-mix": (
        "mse_fpn",
        {"attention": "mix", "gate_at": "after", "norm": "gn", "upsample": "dysample"},
    ),
    "mse_fpn-above": (
        "mse_fpn",
        {"attention": "sigmoid", "gate_at": "above", "gate_init": "linear", "upsample": "dysample_s_plus"},
    ),
    "mse_fpn-pool": ("mse_fpn", {"extra_levels": "pool", "sim": "add", "gate": "none"}),
    "fpn-detectron2": ("fpn", {"start_level": 1, "extra_levels": "conv_c5_relu"}),
    "fpn-torchvision": ("fpn", {"start_level": 1, "extra_levels": "conv_p5_relu"}),
    **{f"gate-{gate}": ("mse_fpn", {"sem": "none", "gate": gate}) for gate in GATES if gate != "gcg"},
}


def factory(name: str) -> Callable[..., Neck]:
    """A neck, or a stack of necks, as one factory."""
    first, *on_top = name.split("+")

    def make(channels: list[int], strides: list[int], width: int, **options: Any) -> Neck:
        members = [NECKS[first](channels, strides, width, **options)]
        for member in on_top:
            below = members[-1].out_strides
            members.append(NECKS[member]([width] * len(below), below, width))
        return Stack(members) if on_top else members[0]

    return make


def inputs_of(name: str) -> list[int]:
    return [32] * len(STRIDES) if NECKS[name].on_top else CHANNELS


FEW = ("afpn", "freq_fusion")
"""Necks whose third level has nothing that the second one lacks, and takes long to trace."""
SHIFT_INVARIANT = ("refine.phi.bias",)
"""A softmax does not see what shifts all its scores alike."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_neck_keeps_the_contract(variant: str) -> None:
    name, options = VARIANTS[variant]
    many = (variant in NECKS and variant not in FEW) or "start_level" in options
    levels = 3 if many else 2  # each is traced anew
    channels, strides = inputs_of(name.split("+")[0])[:levels], STRIDES[:levels]
    check_neck(factory(name), in_channels=channels, in_strides=strides, invariant=SHIFT_INVARIANT, **options)


@pytest.mark.parametrize("name", NECKS)
def test_bad_arguments_are_refused(name: str) -> None:
    channels = inputs_of(name)
    with pytest.raises(ValueError, match="pair up"):
        NECKS[name](channels[:2], STRIDES, 32)
    with pytest.raises(ValueError, match="double"):
        NECKS[name](channels, [4, 8, 16, 16], 32)
    if not NECKS[name].on_top:
        with pytest.raises(ValueError, match="extra_levels 'p9'"):
            NECKS[name](channels, STRIDES, extra_levels="p9")
        with pytest.raises(ValueError, match="start_level"):
            NECKS[name](channels, STRIDES, start_level=4)
