"""Gradient checkpointing gives the same gradients and statistics from less; norms over all processes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msefpn.errors import UserError
from msefpn.models.backbone import Backbone, make_backbone
from msefpn.models.fold import FoldedConv, folded
from msefpn.models.recompute import recompute
from msefpn.models.sync import SyncNorm, synchronise_norms


def train_once(backbone: Backbone) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Bytes that are kept for the backward pass, gradients and buffers after a step."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch.stack([x.square().mean() for x in backbone.train()(torch.randn(2, 3, 64, 64))]).sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return kept, gradients, {name: value.clone() for name, value in backbone.named_buffers()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [("test_resnet", {"train_norm": True}), ("test_resnet", {"frozen_stages": 2}), ("convnext_atto", {})],
)
def test_the_same_gradients_from_less(name: str, options: dict[str, Any]) -> None:
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone = make_backbone(name, **{"frozen_stages": -1} | options)
        if again:
            recompute(backbone)
        found.append(train_once(backbone))
    (kept, gradients, buffers), (less, same, also) = found
    assert less < 0.7 * kept
    assert gradients
    assert_same(gradients, same)
    assert_same(buffers, also)


def test_a_backbone_without_stages_is_refused() -> None:
    backbone = make_backbone("test_resnet")
    backbone._stage_names = []
    with pytest.raises(UserError, match="does not name its stages"):
        recompute(backbone)


def test_synchronised_norms_are_the_same_for_one_process() -> None:
    found = []
    for synchronised in (False, True):
        torch.manual_seed(0)
        backbone = make_backbone("test_resnet", frozen_stages=1, train_norm=True).train()
        names = list(backbone.state_dict())
        trained = [norm for norm in backbone.norms() if norm.training]
        if synchronised:
            assert synchronise_norms(backbone) == len(trained) > 5
            assert not any(type(norm) is nn.BatchNorm2d and norm.training for norm in backbone.norms())
            convolutions = [m for m in backbone.modules() if isinstance(m, FoldedConv)]
            assert {type(conv.norm[0]) for conv in convolutions if conv.norm[0].training} == {SyncNorm}
        assert list(backbone.state_dict()) == names
        _, gradients, buffers = train_once(backbone)
        with torch.no_grad(), folded(backbone.eval()):
            maps = {str(level): x for level, x in enumerate(backbone(torch.ones(1, 3, 64, 64)))}
        found.append((gradients, buffers, maps))
    for one, other in zip(*found, strict=True):
        assert_same(one, other)
