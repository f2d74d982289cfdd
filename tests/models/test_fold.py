"""Folding of fixed batch normalisation: the same maps, gradients, names and, in training mode, statistics."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msefpn.models.backbone import make_backbone
from msefpn.models.fold import FoldedConv, folded, join

NAMES = ["resnet18", "mobilenetv2_100", "regnetx_002", "densenet121"]


def body(name: str) -> Any:
    """A timm model in float64 with statistics and affine parameters that are not those of a new one."""
    torch.manual_seed(0)
    made = timm.create_model(name, features_only=True).double().eval()
    for module in made.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                nn.init.normal_(tensor, std=0.3)
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return made


@pytest.fixture(params=NAMES)
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    plain = body(request.param)
    joined = copy.deepcopy(plain)
    join(joined)
    return plain, joined


def pixels() -> Tensor:
    return torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_convolution_before_a_norm_is_joined_under_its_names(both: tuple[Any, Any]) -> None:
    plain, joined = both
    count = sum(isinstance(module, FoldedConv) for module in joined.modules())
    norms = sum(isinstance(module, _BatchNorm) for module in plain.modules())
    assert 0 < count <= norms
    assert count == norms or "denselayer1.norm1" in str(list(plain.state_dict()))  # DenseNet also norms first
    assert list(joined.state_dict()) == list(plain.state_dict())


def test_maps_are_equal_in_evaluation(both: tuple[Any, Any]) -> None:
    plain, joined = both
    expected = plain(pixels())
    torch.testing.assert_close(joined(pixels()), expected)
    with folded(joined):
        torch.testing.assert_close(joined(pixels()), expected)
    torch.testing.assert_close(copy.deepcopy(joined)(pixels()), expected)


def test_gradients_are_equal_with_fixed_statistics(both: tuple[Any, Any]) -> None:
    for model in both:
        torch.stack([x.square().mean() for x in model(pixels())]).sum().backward()
    for (name, one), other in zip(both[0].named_parameters(), both[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_training_mode_normalises_by_the_batch_and_moves_the_statistics(both: tuple[Any, Any]) -> None:
    plain, joined = (model.train() for model in both)
    torch.manual_seed(2)  # of the models that drop
    expected = plain(pixels())
    torch.manual_seed(2)
    torch.testing.assert_close(joined(pixels()), expected)
    torch.testing.assert_close(joined.state_dict(), plain.state_dict())


def test_a_changed_weight_counts_after_the_folding_has_ended(both: tuple[Any, Any]) -> None:
    plain, joined = both
    with folded(joined):
        before = joined(pixels())[-1]
    for model in both:
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.weight.data *= 1.5
    after = joined(pixels())[-1]
    torch.testing.assert_close(after, plain(pixels())[-1])
    assert not torch.allclose(before, after)


def test_a_map_that_others_read_is_left_alone() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            z: Tensor = self.norm(y) + y
            return z

    forked = Forked()
    join(forked)
    assert type(forked.conv) is nn.Conv2d
    assert type(forked.norm) is nn.BatchNorm2d


def test_what_branches_on_values_stays_as_it_is() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers(x) if x.sum() > 0 else x
            return y

    branching = Branching()
    join(branching)
    assert type(branching.layers[0]) is nn.Conv2d


def test_a_backbone_is_joined_and_trains_some_norms_only() -> None:
    backbone = make_backbone("resnet18", train_norm=True, frozen_stages=1)
    joined = [module for module in backbone.modules() if isinstance(module, FoldedConv)]
    assert len(joined) == 20
    assert {module.norm[0].training for module in joined} == {True, False}
