"""Watching a neck: what is shown is what it computes, for every neck, and nothing of it stays behind."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from msefpn.errors import UserError
from msefpn.explaining.hooks import NeckRecord, watching
from msefpn.necks import GATES, MSEFPN, NECKS, InnerMap, Neck
from msefpn.necks.stack import Stack

CHANNELS, STRIDES = [8, 16, 24, 32], [4, 8, 16, 32]
ALONE = [name for name, neck in NECKS.items() if not neck.on_top]


def build(name: str, **options: Any) -> Neck:
    torch.manual_seed(0)
    return NECKS[name](CHANNELS, STRIDES, 16, extra_levels="pool", **options).eval()


def features() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(1, c, 96 // s, 160 // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]


def watched(neck: Neck) -> tuple[NeckRecord, list[torch.Tensor], list[torch.Tensor]]:
    maps = features()
    with torch.no_grad(), watching(neck) as record:
        pyramid = neck(maps)
    return record, maps, pyramid


@pytest.mark.parametrize("name", ALONE)
def test_every_neck_shows_inputs_and_outputs_and_keeps_no_hook(name: str) -> None:
    neck = build(name)
    with torch.no_grad():
        alone = neck(features())
    record, maps, pyramid = watched(neck)
    for x, same in zip(pyramid, alone, strict=True):
        torch.testing.assert_close(x, same, rtol=0, atol=0)
    for key, strides, expected in (("C", STRIDES, maps), ("P", neck.out_strides, pyramid)):
        assert list(record.stages[key]) == strides
        for shown, x in zip(record.stages[key].values(), expected, strict=True):
            torch.testing.assert_close(shown, x[0], rtol=0, atol=0)
    assert all(not module._forward_hooks for module in neck.modules())
    assert all(part.values.isfinite().all() for part in record.parts)
    for part in record.parts:
        if part.kind != "map":
            assert part.values.min() >= 0
            assert part.values.max() <= 1


def test_hooks_are_gone_after_a_failure() -> None:
    neck = build("fpn")
    with pytest.raises(RuntimeError), watching(neck):
        neck([torch.zeros(1, 3, 4, 4)] * 4)
    assert all(not module._forward_hooks for module in neck.modules())


def test_laterals_and_merged_maps_of_fpn() -> None:
    neck = build("fpn")
    record, maps, _ = watched(neck)
    laterals = [conv(x)[0] for conv, x in zip(neck.laterals, maps, strict=True)]  # type: ignore[arg-type]
    for shown, x in zip(record.stages["F"].values(), laterals, strict=True):
        torch.testing.assert_close(shown, x)
    above = nn.functional.interpolate(laterals[3][None], size=laterals[2].shape[1:])[0]
    torch.testing.assert_close(record.stages["T"][16], laterals[2] + above)
    torch.testing.assert_close(record.stages["T"][32], laterals[3])
    assert record.parts == []


@pytest.mark.parametrize("gate", [name for name in GATES if name != "none"])
def test_gate_is_what_the_neck_multiplies_with(gate: str) -> None:
    neck = build("mse_fpn", gate=gate)
    assert isinstance(neck, MSEFPN)
    if gate == "gmu":  # it blends, and the top level has none
        shown = [part for part in watched(neck)[0].parts if part.name == "GMU gate"]
        assert [part.stride for part in shown] == [4, 8, 16]
        return
    called: list[tuple[torch.Tensor, torch.Tensor]] = []
    for module in neck.gates:
        module.register_forward_hook(lambda _, x, y: called.append((x[0].clone(), y)))
    record, *_ = watched(neck)
    shown = [part for part in record.parts if part.stride is not None and part.name.endswith(" gate")]
    shown = [part for part in shown if not part.name.startswith("SIM")]
    assert [part.stride for part in shown] == STRIDES
    for part, (x, y) in zip(shown, reversed(called), strict=True):  # the neck goes from the top down
        torch.testing.assert_close(part.values * x[0], y[0])


def test_mse_fpn_shows_sem_and_sim_by_the_papers_equations() -> None:
    neck = build("mse_fpn")
    record, maps, _ = watched(neck)
    parts = {(part.name, part.stride): part for part in record.parts}
    m = torch.cat([nn.functional.adaptive_avg_pool2d(x, (2, 3)) for x in maps[1:]], dim=1)
    attention, weights = parts["SEM attention", None].values, parts["SEM channel weights", None].values
    sem = neck.sem
    expected = attention * sem.value(m)[0] + weights * m[0]  # type: ignore[union-attr,operator]
    semantics = parts["SEM semantics G", None].values
    torch.testing.assert_close(semantics, expected)
    assert parts["SEM channel weights", None].groups == ((8, 16), (16, 24), (32, 32))
    gate, embedding = (parts[f"SIM {name}", 16].values[None] for name in ("gate", "embedding"))
    up = partial(nn.functional.interpolate, size=maps[2].shape[2:], mode="bilinear")
    local = neck.get_submodule("laterals.2.local")(maps[2])
    f = local * up(gate) + up(embedding)
    torch.testing.assert_close(record.stages["F"][16], f[0])


@pytest.mark.parametrize("first", ["fpn", "aug_fpn", "mse_fpn"])
def test_stack_shows_what_lies_between(first: str) -> None:
    below = build(first)
    neck = Stack([below, NECKS["bfp"]([16] * 5, below.out_strides, 16)]).eval()
    record, maps, _ = watched(neck)
    assert list(record.stages) == ["C", "F", "T", f"P of {type(below).__name__}", "P"]
    with torch.no_grad():
        for shown, x in zip(record.stages[f"P of {type(below).__name__}"].values(), below(maps), strict=True):
            torch.testing.assert_close(shown, x[0])
    (balanced,) = (part for part in record.parts if part.name == "balanced map")
    torch.testing.assert_close(
        record.stages["P"][16] - record.stages[list(record.stages)[3]][16], balanced.values
    )
    if first == "mse_fpn":
        assert {part.stride for part in record.parts if part.name == "GCG gate"} == set(STRIDES)


def test_attentions_of_the_peers() -> None:
    names = {
        name: [part.name for part in watched(build(name))[0].parts]
        for name in ("ac_fpn", "ce_fpn", "aug_fpn")
    }
    assert names["ac_fpn"] == ["CxAM attention", "CnAM attention"]
    assert names["ce_fpn"] == ["CAG gate"]
    assert names["aug_fpn"] == [f"weight of C5 pooled to 0.{tenth}" for tenth in (1, 2, 3)]


def test_neck_of_a_plugin_that_follows_no_convention() -> None:
    class Mean(Neck):
        def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
            return [x.mean(dim=1, keepdim=True) for x in features]

    record, *_ = watched(Mean(CHANNELS, STRIDES, 1))
    assert list(record.stages) == ["C", "P"]
    assert record.parts == []


class Halved(nn.Module):
    """A gate of a plug-in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated: torch.Tensor = x * self.inner(x)
        return gated

    def inner_maps(self, outputs: dict[str, list[torch.Tensor]]) -> list[InnerMap]:
        (gate,) = outputs["inner"]
        logits, gated = outputs["inner.0"][0], outputs[""][0]
        torch.testing.assert_close(gate, logits.sigmoid())
        return [InnerMap("half gate", "gate", gate, text="Half of it."), InnerMap("half", "map", gated)]


class Own(Neck):
    """A neck of a plug-in with the usual lists, and a list that only looks like one."""

    def __init__(self, in_channels: list[int], in_strides: list[int], out_channels: int = 16) -> None:
        super().__init__(in_channels, in_strides, out_channels)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.gates = nn.ModuleList(Halved(out_channels) for _ in in_channels)
        self.outputs = nn.ModuleList([nn.AdaptiveAvgPool2d(1)])
        self.members = "nothing of a stack"

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        laterals = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        whole = self.outputs[0](laterals[-1].flatten(2))
        return [gate(x) + whole[..., None] for gate, x in zip(self.gates, laterals, strict=True)]


def test_neck_of_a_plugin_shows_its_lists_and_what_its_modules_tell() -> None:
    neck = Own(CHANNELS, STRIDES).eval()
    record, maps, _ = watched(neck)
    assert list(record.stages) == ["C", "F", "P"]
    lateral = neck.laterals[1](maps[1])[0]
    torch.testing.assert_close(record.stages["F"][8], lateral)
    assert [(part.name, part.stride) for part in record.parts[:2]] == [("half gate", 4), ("half", 4)]
    assert [part.stride for part in record.parts] == [4, 4, 8, 8, 16, 16, 32, 32]
    gate, half = record.parts[2:4]
    torch.testing.assert_close(half.values, lateral * gate.values)
    assert (gate.module, gate.text) == ("Halved", "Half of it.")


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (lambda _: [InnerMap("a", "picture", torch.ones(1, 1, 2, 2))], "kind map, gate or channels"),
        (lambda _: [InnerMap("a", "map", torch.ones(2, 2))], "kind map, gate or channels"),
        (lambda outputs: outputs["none"], "KeyError: 'none'"),
    ],
)
def test_a_plugin_whose_maps_fail_is_told(maps: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Halved, "inner_maps", staticmethod(maps))
    with pytest.raises(UserError, match=f"inner_maps of Halved fails .*{message}"):
        watched(Own(CHANNELS, STRIDES).eval())
