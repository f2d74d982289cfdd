"""FPN against torchvision's; MSE-FPN against its definition, its costs and its ablations."""

import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import FeaturePyramidNetwork

from msefpn.necks import FPN, GCG, MSEFPN, SEM, SIM

R50 = [256, 512, 1024, 2048]
CHANNELS = [16, 24, 40, 64]
STRIDES = [4, 8, 16, 32]

Maps = list[Tensor]


def maps(height: int = 75, width: int = 101) -> Maps:
    torch.manual_seed(1)
    sides = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(2, c, *side) for c, side in zip(CHANNELS, sides, strict=True)]


def neck(**options: Any) -> MSEFPN:
    torch.manual_seed(0)
    return MSEFPN(CHANNELS, STRIDES, 32, **options).eval()


@pytest.mark.parametrize(("height", "width"), [(128, 96), (75, 101), (33, 50)])
def test_fpn_equals_torchvision(height: int, width: int) -> None:
    ours = FPN(CHANNELS, STRIDES, 32)
    theirs = FeaturePyramidNetwork(CHANNELS, 32)
    for i in range(4):
        theirs.inner_blocks[i][0].load_state_dict(ours.laterals[i].state_dict())
        theirs.layer_blocks[i][0].load_state_dict(ours.outputs[i].state_dict())
    features = maps(height, width)
    expected = theirs(OrderedDict((str(i), x) for i, x in enumerate(features))).values()
    for x, y in zip(ours(features), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "parameters", "gmac"),
    [
        (None, 3_344_384, 58.00),
        ({"sem": "none"}, 3_870_720, 58.06),
        ({}, 28_885_088, 64.18),
        ({"preset": "split"}, 26_124_976, 63.40),
        ({"preset": "lean"}, 5_407_568, 58.46),
    ],
    ids=["fpn", "fpn+gcg", "shared", "split", "lean"],
)
def test_cost_at_1280_x_800(options: dict[str, Any] | None, parameters: int, gmac: float) -> None:
    with torch.device("meta"):
        model = FPN(R50, STRIDES) if options is None else MSEFPN(R50, STRIDES, **options)
        features = [torch.empty(1, c, 800 // s, 1280 // s) for c, s in zip(R50, STRIDES, strict=True)]
    with FlopCounterMode(display=False) as counter:
        model(features)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.005)


def test_sem_follows_its_equations() -> None:
    torch.manual_seed(0)
    sem = SEM(CHANNELS[1:])
    c3, c4, c5 = maps()[1:]
    found = sem([c3, c4, c5], c5)
    size = (-(-c5.shape[2] // 2), -(-c5.shape[3] // 2))
    m = torch.cat([F.adaptive_avg_pool2d(x, size) for x in (c3, c4, c5)], 1)
    for i in range(2):  # one sample at a time, every query and key written out
        query, key = sem.query(m[i : i + 1])[0].flatten(1), sem.key(m[i : i + 1])[0].flatten(1)
        scores = query.T @ key
        scores = (scores - scores.mean()) / (scores.var(unbiased=False) + 1e-5).sqrt()
        a = scores.mean(0).sigmoid().view(1, *size)
        w1, w2 = (layer for layer in sem.channel_gate if isinstance(layer, nn.Conv2d))
        z = m[i].mean((1, 2))
        hidden = F.relu(F.linear(z, w1.weight.flatten(1), w1.bias))
        weight = F.linear(hidden, w2.weight.flatten(1), w2.bias).sigmoid()
        expected = a * sem.value(m[i : i + 1])[0] + weight[:, None, None] * m[i]
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4)


def test_sem_widths() -> None:
    assert SEM([512, 1024, 2048]).query.out_channels == 448
    assert SEM([512, 1024, 2048]).channel_gate[0].out_channels == 224
    assert SEM([16]).query.out_channels == 8


@pytest.mark.parametrize("combine", ["add", "cascade", "residual"])
def test_sem_combinations(combine: str) -> None:
    torch.manual_seed(0)
    both = SEM(CHANNELS[1:], combine=combine)
    features = maps()[1:]
    m = torch.cat([F.adaptive_avg_pool2d(x, (2, 2)) for x in features], 1)
    a, v, w = both.spatial_weight(m), both.value(m), both.channel_weight(m)
    expected = {"add": a * v + w * m, "cascade": w * (a * v) + m, "residual": m + a * v + w * m}[combine]
    torch.testing.assert_close(both(features, features[-1]), expected)


def test_score_norm_after_pooling() -> None:
    torch.manual_seed(0)
    sem = SEM(CHANNELS[1:], score_norm="after")
    m = torch.randn(2, sem.channels, 3, 4)
    pooled = (sem.query(m).flatten(2).transpose(1, 2) @ sem.key(m).flatten(2)).mean(1)
    expected = F.layer_norm(pooled, pooled.shape[1:]).sigmoid().view(2, 1, 3, 4)
    torch.testing.assert_close(sem.spatial_weight(m), expected, atol=1e-5, rtol=1e-4)


def test_sim_follows_its_equation() -> None:
    torch.manual_seed(0)
    sim = SIM(24, 40, 64)
    x, g = torch.randn(2, 24, 9, 13), torch.randn(2, 40, 3, 4)

    def up(t: Tensor) -> Tensor:
        return F.interpolate(t, size=(9, 13), mode="bilinear", align_corners=False)

    def branch(layers: Any) -> Tensor:
        return F.group_norm(F.conv2d(g, layers[0].weight), 32, layers[1].weight, layers[1].bias)

    expected = sim.local(x) * up(branch(sim.gate).sigmoid()) + up(branch(sim.embedding))
    torch.testing.assert_close(sim(x, g), expected)
    assert sim.local.bias is not None
    assert sim.gate[0].bias is None


def test_sim_groups_divide_any_width() -> None:
    assert SIM(24, 40, 112).gate[1].num_groups == 28
    assert SIM(24, 40, 37).gate[1].num_groups == 1


def test_gcg_follows_its_equation() -> None:
    torch.manual_seed(0)
    gate = GCG(8)
    assert gate.rows.bias is not None
    assert gate.columns.bias is not None
    x = torch.randn(2, 8, 5, 7)
    u = torch.einsum("oc,bch->boh", gate.rows.weight.flatten(1), x.mean(3)) + gate.rows.bias[:, None]
    v = torch.einsum("oc,bcw->bow", gate.columns.weight.flatten(1), x.mean(2)) + gate.columns.bias[:, None]
    torch.testing.assert_close(gate(x), torch.einsum("bch,bcw->bchw", u, v).sigmoid() * x)


@pytest.mark.parametrize("gate_at", ["merged", "lateral"])
def test_wiring(gate_at: str) -> None:
    model = neck(gate_at=gate_at)
    features = maps()
    assert model.sem is not None
    semantics = model.sem(features[1:], features[3])
    f = [sim(x, semantics) for sim, x in zip(model.laterals, features, strict=True)]
    t = [model.gates[3](f[3])]
    for i in (2, 1, 0):
        up = F.interpolate(t[0], size=f[i].shape[2:], mode="nearest")
        t.insert(0, model.gates[i](f[i] + up) if gate_at == "merged" else model.gates[i](f[i]) + up)
    for x, conv, y in zip(model(features), model.outputs, t, strict=True):
        torch.testing.assert_close(x, conv(y))


def test_lean_is_shared_on_a_reduced_map() -> None:
    lean = neck(preset="lean", width=24)
    assert lean.sem is not None
    features = maps()
    size = (-(-features[3].shape[2] // 2), -(-features[3].shape[3] // 2))
    reduced = lean.sem.reduce(torch.cat([F.adaptive_avg_pool2d(x, size) for x in features[1:]], 1))
    plain = SEM([24])
    plain.load_state_dict({k: v for k, v in lean.sem.state_dict().items() if not k.startswith("reduce.")})
    gathered = lean.sem(features[1:], features[3])
    torch.testing.assert_close(gathered, plain([reduced], features[3]))
    widths = {module.in_channels for sim in lean.laterals for module in (sim.gate[0], sim.embedding[0])}  # type: ignore[index,union-attr]
    assert widths == {24}
    default = neck(preset="lean")
    assert default.sem is not None
    assert default.sem.channels == 32


def test_split_gives_each_level_its_own_slice() -> None:
    model = neck(preset="split", gate="none")
    features = maps()
    assert model.sem is not None
    semantics = model.sem(features, features[3]).split(CHANNELS, 1)
    f5 = model.laterals[3](features[3], semantics[3])
    torch.testing.assert_close(model(features)[3], model.outputs[3](f5))


def test_split_refuses_other_levels() -> None:
    with pytest.raises(ValueError, match=r"needs sem_strides \[4, 8, 16, 32\]"):
        neck(preset="split", sem_strides=[8, 16, 32])
    retina = neck(preset="split", start_level=1, sem_strides=[8, 16, 32])
    assert retina.sem_levels == [1, 2, 3]


@pytest.mark.parametrize("strides", [[4, 8, 16, 32], [8, 16, 32], [16, 32]])
def test_sem_scales(strides: list[int]) -> None:
    model = neck(sem_strides=strides)
    assert model.sem is not None
    assert model.sem.channels == sum(c for c, s in zip(CHANNELS, STRIDES, strict=True) if s in strides)
    assert len(model(maps())) == 4


def test_retina_may_read_c2() -> None:
    model = neck(start_level=1, extra_levels="conv_c5", sem_strides=STRIDES)
    assert model.out_strides == [8, 16, 32, 64, 128]
    assert [x.shape[1] for x in model(maps())] == [32] * 5


ROWS: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "sem only": ({"sim": "add", "gate": "none"}, {"sem.value": True, "sem.channel_gate": True}),
    "sem spatial": (
        {"sem": "spatial", "sim": "add", "gate": "none"},
        {"sem.value": True, "sem.channel_gate": False},
    ),
    "sem channel": (
        {"sem": "channel", "sim": "add", "gate": "none"},
        {"sem.value": False, "sem.channel_gate": True},
    ),
    "sim only": ({"sem": "conv", "gate": "none"}, {"sem.conv": True, "laterals.0.gate": True}),
    "sem + sim": ({"gate": "none"}, {"sem.value": True, "laterals.0.gate": True, "gates": False}),
    "sim + 1x1": ({"sim": "wide", "gate": "none"}, {"laterals.0.reduce": True}),
    "gcg only": ({"sem": "none"}, {"sem": False, "gates.0.rows": True, "laterals.0.gate": False}),
    "cag": ({"gate": "cag"}, {"gates.0.fc_max": True}),
    "coordinate attention": ({"gate": "coordinate"}, {"gates.0.shared": True}),
    "cbam": ({"gate": "cbam"}, {"gates.0.mlp": True}),
    "gmu": ({"gate": "gmu"}, {"gates.0.above": True}),
}


def test_wide_sim_has_its_1x1_on_every_level() -> None:
    laterals: list[Any] = list(MSEFPN(R50, STRIDES, sim="wide").laterals)
    widths = [(sim.local.out_channels, sim.reduce.out_channels) for sim in laterals]
    assert widths == [(256, 256), (512, 256), (1024, 256), (2048, 256)]


@pytest.mark.parametrize("row", ROWS)
def test_ablation_rows(row: str) -> None:
    options, expected = ROWS[row]
    model = neck(**options)
    names = [name for name, _ in model.named_parameters()]
    for part, present in expected.items():
        assert any(name.startswith(f"{part}.") for name in names) == present, part
    assert all(x.isfinite().all() for x in model(maps()))


def test_no_modules_is_fpn() -> None:
    plain, reference = neck(sem="none", gate="none"), FPN(CHANNELS, STRIDES, 32)
    reference.load_state_dict(plain.state_dict())
    for x, y in zip(plain(maps()), reference(maps()), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(("gate", "size"), [("gcg", 131_584), ("cag", 131_584), ("coordinate", 6_680)])
def test_gate_sizes(gate: str, size: int) -> None:
    model = MSEFPN(R50, STRIDES, sem="none", gate=gate)
    assert sum(p.numel() for p in model.gates[0].parameters()) == size


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "both"},
        {"preset": "split", "width": 32},
        {"sem": "none", "width": 32},
        {"sem": "all"},
        {"sim": "none"},
        {"gate": "se"},
        {"gate_at": "top"},
        {"combine": "mean"},
        {"score_norm": "never"},
        {"sem": "spatial", "combine": "cascade"},
        {"sem_strides": [2, 4]},
        {"sem_strides": []},
        {"gate": "gmu", "gate_at": "lateral"},
        {"gate": "none", "gate_at": "above"},
        {"sem": "channel", "score_norm": "after"},
        {"sem": "none", "combine": "cascade"},
        {"sem": "none", "sem_strides": [4, 8]},
        {"sem": "none", "sim": "wide"},
    ],
    ids=str,
)
def test_wrong_choices_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"known:|needs|joins|none of"):
        neck(**options)


def test_import_is_light() -> None:
    code = (
        "import sys; from msefpn.necks import MSEFPN; heavy = {'yaml', 'torchvision', 'timm', "
        "'pytorch_lightning', 'supervision', 'msefpn.commands.train'} & set(sys.modules); print(*heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
