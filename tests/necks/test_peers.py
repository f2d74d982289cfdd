"""The pyramids beside MSE-FPN: their sizes, and their equations written out a second time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from msefpn.necks import ACFPN, AFPN, BFP, CEFPN, FPN, GATES, NECKS, PAFPN, AugFPN, BiFPN
from msefpn.necks.ac_fpn import CEM
from msefpn.necks.aug_fpn import AdaptiveSpatialFusion
from msefpn.necks.bifpn import BiFPNCell, WeightedFusion
from msefpn.necks.freq_fusion import FrequencyFusion, _similarities
from msefpn.necks.layers import max_down
from msefpn.necks.upsample import sample_at

R50, STRIDES = [256, 512, 1024, 2048], [4, 8, 16, 32]
CHANNELS = [16, 24, 40, 64]
FPN_SIZE, FPN_GMAC = 3_344_384, 58.0


def maps(channels: list[int] = CHANNELS, height: int = 72, width: int = 104) -> list[Tensor]:
    torch.manual_seed(1)
    sides = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(2, c, *side) for c, side in zip(channels, sides, strict=True)]


def make(neck: type[Any], **options: Any) -> Any:
    torch.manual_seed(0)
    return neck(CHANNELS, STRIDES, 32, **options).eval()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:])


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"),
    [
        ("pafpn", FPN_SIZE + 3_540_480, FPN_GMAC + 24.8),
        ("aug_fpn", FPN_SIZE + 1_777_411, FPN_GMAC + 0.27),
        ("ce_fpn", 28_580_864, 30.0),
        ("afpn", FPN_SIZE + 7_952_261, 53.5),
        ("freq_fusion", FPN_SIZE + 188_694, FPN_GMAC + 4.65),
    ],
)
def test_published_costs(name: str, parameters: int, gmac: float) -> None:
    with torch.device("meta"):
        neck = NECKS[name](R50, STRIDES).eval()
        features = [torch.empty(1, c, 800 // s, 1280 // s) for c, s in zip(R50, STRIDES, strict=True)]
        with FlopCounterMode(display=False) as counter:
            neck(features)
    assert size(neck) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.1)


def test_published_sizes_of_parts() -> None:
    assert size(BFP([256] * 5, [4, 8, 16, 32, 64])) == 263_168
    assert size(CEM(2048, 256)) == pytest.approx(12.8e6, rel=0.01)
    assert size(BiFPNCell(256, 5)) == pytest.approx(0.55e6, rel=0.01)
    assert size(AdaptiveSpatialFusion(256, 4)) == 271_620
    assert {name: size(GATES[name](256)) for name in ("gcg", "cag", "coordinate")} == {
        "gcg": 131_584,
        "cag": 131_584,
        "coordinate": 6_680,
    }
    assert size(GATES["cbam"](256)) == pytest.approx(8.6e3, rel=0.02)


def test_bfp_costs_what_its_attention_does() -> None:
    neck = BFP([256] * 5, [4, 8, 16, 32, 64]).eval()
    features = [torch.rand(1, 256, 800 // s, 1280 // s) for s in (16, 32)]
    features = [torch.rand(1, 256, 200 // s, 320 // s) for s in (1, 2)] + features
    features.append(torch.rand(1, 256, 13, 20))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        neck(features)
    assert counter.get_total_flops() / 2e9 == pytest.approx(9.2, abs=0.1)


@pytest.mark.parametrize("sides", [(18, 26), (9, 13), (7, 7), (1, 1)])
@pytest.mark.parametrize("ratio", [2, 4])
def test_max_down_in_a_graph(sides: tuple[int, int], ratio: int) -> None:
    x = torch.randn(1, 3, *sides)
    like = torch.zeros(1, 3, *(-(-side // ratio) for side in sides))
    torch._dynamo.reset()
    traced = torch.compile(max_down, fullgraph=True, backend="eager", dynamic=True)(x, like, ratio)
    assert torch.equal(traced, F.adaptive_max_pool2d(x, like.shape[2:]))


def test_pafpn() -> None:
    neck = make(PAFPN)
    fpn = make(FPN)
    fpn.load_state_dict(neck.state_dict(), strict=False)
    expected = fpn(maps())
    for i in range(3):
        step = F.conv2d(expected[i], neck.downs[i].weight, neck.downs[i].bias, stride=2, padding=1)
        expected[i + 1] = expected[i + 1] + step
    for i in range(1, 4):
        expected[i] = neck.smooths[i - 1](expected[i])
    for x, y in zip(neck(maps()), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_weighted_fusion() -> None:
    torch.manual_seed(0)
    fusion = WeightedFusion(8, 3).eval()
    fusion.weights.data = torch.tensor([2.0, -1.0, 0.5])  # type: ignore[union-attr]  # it is weighted
    a, b, c = torch.randn(3, 2, 8, 5, 7)
    expected = fusion.conv((2 * a + 0 * b + 0.5 * c) / (2.5 + 1e-4))
    torch.testing.assert_close(fusion([a, b, c]), expected)
    plain = WeightedFusion(8, 3, weighted=False).eval()
    torch.testing.assert_close(plain([a, b, c]), plain.conv(a + b + c))


def test_bifpn() -> None:
    neck = make(BiFPN, start_level=1, extra_levels="conv_c5", cells=1)
    assert neck.out_strides == [8, 16, 32, 64, 128]
    features = maps()
    p3, p4, p5 = (project(x) for project, x in zip(neck.projections, features[1:], strict=True))
    p6 = F.max_pool2d(neck.extra.conv(features[-1]), 3, 2, 1)
    p7 = F.max_pool2d(p6, 3, 2, 1)
    cell = neck.cells[0]
    down, upward = cell.top_down, cell.bottom_up
    m6 = down[3]([p6, up(p7, p6)])
    m5 = down[2]([p5, up(m6, p5)])
    m4 = down[1]([p4, up(m5, p4)])
    o3 = down[0]([p3, up(m4, p3)])
    o4 = upward[0]([p4, m4, F.max_pool2d(o3, 3, 2, 1)])
    o5 = upward[1]([p5, m5, F.max_pool2d(o4, 3, 2, 1)])
    o6 = upward[2]([p6, m6, F.max_pool2d(o5, 3, 2, 1)])
    o7 = upward[3]([p7, F.max_pool2d(o6, 3, 2, 1)])
    for x, y in zip(neck(features), (o3, o4, o5, o6, o7), strict=True):
        torch.testing.assert_close(x, y)


def test_statistics_of_bifpn() -> None:
    neck = make(BiFPN, cells=1, norm_momentum=0.3)
    norms = [module for module in neck.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.3}
    assert {module.momentum for module in make(BiFPN).modules() if isinstance(module, nn.BatchNorm2d)} == {
        0.01
    }


def test_bfp() -> None:
    torch.manual_seed(0)
    neck = BFP([32] * 4, STRIDES, 32).eval()
    features = maps([32] * 4)
    for x, y in zip(neck(features), features, strict=True):  # the block starts as the identity
        assert not torch.equal(x, y)
    nn.init.normal_(neck.refine.out.weight, std=0.1)
    like = features[2]
    pooled = [F.adaptive_max_pool2d(x, like.shape[2:]) for x in features[:2]]
    mean = (pooled[0] + pooled[1] + like + up(features[3], like)) / 4
    q, k, v = (conv(mean).flatten(2) for conv in (neck.refine.theta, neck.refine.phi, neck.refine.g))
    mixed = v @ (q.transpose(1, 2) @ k).softmax(dim=2).transpose(1, 2)
    refined = mean + neck.refine.out(mixed.view_as(mean))
    expected = [x + up(refined, x) for x in features[:2]] + [like + refined]
    expected.append(features[3] + F.adaptive_max_pool2d(refined, features[3].shape[2:]))
    for x, y in zip(neck(features), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_afpn() -> None:
    neck = make(AFPN)
    for norm in (module for module in neck.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean = torch.rand(norm.num_features) - 0.5
        norm.running_var = torch.rand(norm.num_features) + 0.5
    assert [reduce[0].out_channels for reduce in neck.reduce] == [8, 8, 8, 8]  # an eighth, but not below 8
    assert [reduce[0].out_channels for reduce in make(AFPN, reduction=2).reduce] == [8, 12, 20, 32]
    with pytest.raises(ValueError, match="reduction 0 must be at least 1"):
        make(AFPN, reduction=0)
    features = maps()
    levels = [reduce(x) for reduce, x in zip(neck.reduce, features, strict=True)]
    for count, stage in zip((2, 3, 4), neck.stages, strict=True):
        mixed = []
        for i, fuse in enumerate(stage.fuse):
            height, width = levels[i].shape[2:]
            brought = []
            for j, x in enumerate(levels[:count]):
                if j < i:  # finer: no overlap, the last cells filled up with zeros
                    side = 2 ** (i - j)
                    filled = torch.zeros(2, x.shape[1], height * side, width * side)
                    filled[:, :, : x.shape[2], : x.shape[3]] = x
                    brought.append(stage.bring[i][j].conv(filled))
                elif j > i:
                    x = stage.bring[i][j].conv(x)
                    brought.append(F.interpolate(x, size=(height, width), mode="bilinear"))
                else:
                    brought.append(x)
            small = torch.cat([part(x) for part, x in zip(fuse.compress, brought, strict=True)], dim=1)
            shares = torch.einsum("lc,bchw->blhw", fuse.weigh.weight[:, :, 0, 0], small)
            shares = (shares + fuse.weigh.bias[None, :, None, None]).softmax(dim=1)
            x = fuse.conv(torch.einsum("blhw,lbchw->bchw", shares, torch.stack(brought)))
            for unit in stage.units[i]:
                x = F.relu(x + unit.second(unit.first(x)))
            mixed.append(x)
        levels[:count] = mixed
    expected = [conv(x) for conv, x in zip(neck.outputs, levels, strict=True)]
    for x, y in zip(neck(features), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_frequency_fusion() -> None:
    torch.manual_seed(0)
    fusion = FrequencyFusion(8).eval()  # its layers as torch starts them, so that the kernels differ
    fine, coarse = torch.randn(1, 8, 6, 8), torch.randn(1, 8, 3, 4)
    z_fine, z_coarse = fusion.compress_fine(fine), fusion.compress_coarse(coarse)
    low = (fusion.low(z_fine) + up(fusion.low(z_coarse), fine)).softmax(dim=1)
    high = (fusion.high(z_fine) + up(fusion.high(z_coarse), fine)).softmax(dim=1)
    smooth, blurred = torch.zeros_like(fine), torch.zeros_like(fine)
    for row in range(6):
        for column in range(8):
            for k, (dy, dx) in enumerate((a, b) for a in range(-2, 3) for b in range(-2, 3)):
                y, x = row // 2 + dy, column // 2 + dx
                if 0 <= y < 3 and 0 <= x < 4:
                    smooth[..., row, column] += low[:, k, row, column] * coarse[..., y, x]
            for k, (dy, dx) in enumerate((a, b) for a in range(-1, 2) for b in range(-1, 2)):
                y, x = row + dy, column + dx
                if 0 <= y < 6 and 0 <= x < 8:
                    blurred[..., row, column] += high[:, k, row, column] * fine[..., y, x]
    z = z_fine + up(z_coarse, fine)
    read = torch.cat([z, _similarities(z)], dim=1)
    offset = fusion.direction(read) * fusion.size(read).sigmoid()
    moved = sample_at(smooth, offset.unflatten(1, (4, 2)))
    torch.testing.assert_close(fusion(fine, coarse), 2 * fine - blurred + moved, atol=1e-5, rtol=1e-5)


def test_aug_fpn() -> None:
    neck = make(AugFPN)
    features = maps(height=700, width=1000)
    c5 = features[-1]  # 22 x 32 cells: pooled to 2 x 3, 4 x 6 and 6 x 9
    sizes = [(2, 3), (4, 6), (6, 9)]
    context = [
        F.interpolate(conv(F.adaptive_avg_pool2d(c5, s)), c5.shape[2:], mode="bilinear", align_corners=True)
        for conv, s in zip(neck.augment.reduce, sizes, strict=True)
    ]
    weights = neck.augment.fuse.weigh(torch.cat(context, dim=1))
    fused = sum(weights[:, i : i + 1] * x for i, x in enumerate(context))
    laterals = [conv(x) for conv, x in zip(neck.laterals, features, strict=True)]
    pyramid, aux = neck.forward_with_aux(features)
    for x, y in zip(aux["laterals"], laterals, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(pyramid[-1], neck.outputs[-1](laterals[-1] + fused), atol=1e-5, rtol=1e-5)


def test_ce_fpn() -> None:
    neck = make(CEFPN)
    c2, c3, c4, c5 = features = maps()
    first, second = neck.skips
    f2 = neck.plain[0](c2)
    f3 = first.local(c3) + up(first.above(F.pixel_shuffle(c4, 2)), c3)
    f4 = second.local(c4) + up(second.above(F.pixel_shuffle(c5, 2)), c4)
    p4 = f4
    p3 = f3 + up(p4, f3)
    p2 = f2 + up(p3, f2)
    sce = neck.context
    context = up(F.pixel_shuffle(sce.local(c5), 2), c4)
    context = context + up(F.pixel_shuffle(sce.wide(F.max_pool2d(c5, 3, 2, 1)), 4), c4)
    context = context + sce.whole(c5.mean((2, 3), keepdim=True))
    pool = [F.adaptive_max_pool2d(x, c4.shape[2:]) for x in (p2, p3)]
    i = (pool[0] + pool[1] + p4 + context) / 4
    cag = neck.guidance
    w = (cag.fc_avg(i.mean((2, 3), True)).relu() + cag.fc_max(i.amax((2, 3), True)).relu()).sigmoid()
    expected = [w * (f2 + up(i, f2)), w * (f3 + up(i, f3)), w * (f4 + i)]
    expected.append(w * F.adaptive_max_pool2d(i, c5.shape[2:]))
    for x, y in zip(neck(features), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="divisible by 4"):
        CEFPN([16, 24, 40, 66], STRIDES)
    with pytest.raises(ValueError, match="lower start_level"):
        CEFPN(CHANNELS, STRIDES, start_level=3)


def test_ac_fpn() -> None:
    neck = make(ACFPN)
    features = maps()
    c5 = features[-1]
    read = [c5]
    for block in neck.cem.blocks:
        read.append(block(torch.cat(read, dim=1)))
    context = neck.cem.join(torch.cat(read[1:], dim=1))

    def weight(module: Any, x: Tensor) -> Tensor:
        scores: Tensor = module.query(x).flatten(2).transpose(1, 2) @ module.key(x).flatten(2)  # (B, N, N)
        return scores.mean(dim=1).sigmoid().view(len(x), 1, *x.shape[2:])

    am = neck.am
    gated = (weight(am.context, context) + weight(am.content, c5)) * am.value(context)
    expected = neck.outputs[-1](neck.laterals[-1](c5) + gated)
    torch.testing.assert_close(neck(features)[-1], expected, atol=1e-5, rtol=1e-5)


def test_deformable_starts_as_dilated() -> None:
    plain, deformable = CEM(16, 8).eval(), make(ACFPN, deformable=True).cem
    block = deformable.blocks[0][3]
    x = torch.randn(1, block.conv.in_channels, 9, 11)
    dilated = F.conv2d(x, block.conv.weight, block.conv.bias, padding=3, dilation=3)
    torch.testing.assert_close(block(x), dilated, atol=1e-5, rtol=1e-5)
    assert [block[3].dilation for block in plain.blocks] == [(d, d) for d in (3, 6, 12, 18, 24)]  # type: ignore[index]  # Sequentials
