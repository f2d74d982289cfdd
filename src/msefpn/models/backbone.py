"""Backbones: timm's models with four levels, and those of plug-ins, as detectors use them.

A backbone of your own is a class or function under `@register("backbone", NAME)`, called with the
configuration's `backbone_options`, that returns a module. See `Body` for what it must have:

    @register("backbone", "torchvision_resnet18")
    def resnet18():
        layers = {f"layer{i}": f"c{i}" for i in (1, 2, 3, 4)}
        body = create_feature_extractor(torchvision.models.resnet18(), layers)
        body.channels, body.strides = [64, 128, 256, 512], [4, 8, 16, 32]
        return body
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import timm
import torch
from torch import Tensor, nn

from msefpn.errors import UserError, unknown_backbone
from msefpn.models.blank import blank
from msefpn.models.construct import check_options, construct
from msefpn.models.fold import join
from msefpn.plugins import known

_STRIDES = [4, 8, 16, 32]
_SMALLEST_EPS = 1e-30
"""Stands for an epsilon of 0, which torch 2.11's batch normalisation refuses; no variance notices it."""
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
"""ImageNet's, RGB, 0..255."""
_OWN_OPTIONS = ("frozen_stages", "train_norm", "norm_eps", "mean", "std", "stride_in_1x1")
"""Of any backbone, see `Backbone`."""


class Body(Protocol):
    """What a plug-in returns: a module that gives maps. Besides, it may have these attributes:

    mean, std: (3,) of the images that its weights were trained on, 0..255, RGB; else ImageNet's.
    stages: names of its submodules in the order of the data, the stem first, for `frozen_stages`.
    """

    channels: Sequence[int]
    """Channels of the maps, finest first."""
    strides: Sequence[int]
    """Their strides, input pixels per cell, each twice the one before."""

    def __call__(self, images: Tensor) -> Any:
        """The maps (B, channels[i], H / strides[i], W / strides[i]) of images (B, 3, H, W).

        A list, a tuple, a dictionary in this order, or an object whose `feature_maps` are these.
        """


@dataclass(frozen=True)
class BodySpec:
    """A module that gives maps, and what is known of it."""

    body: nn.Module
    channels: list[int]
    strides: list[int]
    mean: list[float]
    std: list[float]
    stages: list[list[str]]
    """Names of the parameters of the stem and each stage; empty: they cannot be told."""
    stage_names: list[str]
    """What the stages are called, for messages; the stem's is the first."""
    nhwc: bool = False
    """Whether its maps are (B, H, W, C)."""
    timm_name: str | None = None
    """Of a model of timm's, whose ImageNet weights timm's hub has."""


class Backbone(nn.Module):
    """A module that gives maps, frozen as mmdetection freezes its backbones, its fixed norms folded.

    Args:
        spec: the module, and what is known of it.
        name: what configurations call it.
        frozen_stages: 0: the stem; 1: also the first stage, and so on; -1: none; None: 1, or -1 where the
            stages cannot be told.
        train_norm: let batch normalisation update its statistics; else they stay fixed, scale and shift are
            trained outside the frozen stages, and the convolution before does all of the work, see `fold`.
        norm_eps: epsilon of batch normalisation; None: the model's own.
        mean: (3,) mean of the images that the weights were trained on, 0..255, RGB; None: the model's own.
        std: (3,) their standard deviation; 1, 1, 1 for weights of caffe style; None: the model's own.
        stride_in_1x1: put the stride of a ResNet's bottlenecks into their first 1x1 convolution, as weights
            of caffe style have it (MSRA's, detectron2's zoo), not into the 3x3 one.

    Attributes:
        channels: channels of the maps, finest first.
        strides: their strides.
        mean: the images' mean that it takes.
        std: their standard deviation.
        stride_in_1x1: see above.
        frozen: names of the frozen parameters.
        timm_name: of a model of timm's, whose ImageNet weights timm's hub has; else None.

    Raises:
        UserError: `frozen_stages` is not one of the stages, `mean` or `std` are not three numbers, or there
            are no bottlenecks whose stride could be moved.
    """

    def __init__(
        self,
        spec: BodySpec,
        name: str,
        *,
        frozen_stages: int | None = None,
        train_norm: bool = False,
        norm_eps: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.train_norm, self.timm_name = name, train_norm, spec.timm_name
        self.body: Any = spec.body
        self.channels, self.strides = list(spec.channels), list(spec.strides)
        self._stage_names = spec.stage_names[1:]
        self.mean = spec.mean if mean is None else _three("mean", mean)
        self.std = spec.std if std is None else _three("std", std, above=0)
        self.nhwc, self.stride_in_1x1 = spec.nhwc, stride_in_1x1
        if stride_in_1x1:
            _move_strides(spec.body, name)
        for module in self.norms():
            module.eps = module.eps if norm_eps is None else max(norm_eps, _SMALLEST_EPS)
        if frozen_stages is None:
            frozen_stages = 1 if spec.stages else -1
        self.frozen = _freeze(spec, frozen_stages)
        join(self.body)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, channels[i], H / strides[i], W / strides[i]) of normalised images (B, 3, H, W)."""
        maps = as_maps(self.body(x))
        return [x.permute(0, 3, 1, 2) for x in maps] if self.nhwc else maps

    def norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """Its batch normalisation layers."""
        return [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def stages(self) -> list[nn.Module]:
        """Its stages, without the stem, in the order of the data; empty where it does not name them."""
        modules = dict(self.body.named_modules())
        names = ((name, name.replace(".", "_")) for name in self._stage_names)  # timm flattens some of them
        found = [modules.get(name, modules.get(flat)) for name, flat in names]
        return [stage for stage in found if stage is not None]

    def train(self, mode: bool = True) -> "Backbone":
        """Switch the mode; fixed statistics stay in evaluation mode."""
        super().train(mode)
        for module in self.norms():
            scale = module.weight
            module.train(mode and self.train_norm and (scale is None or scale.requires_grad))
        return self


def make_backbone(
    name: str,
    *,
    frozen_stages: int | None = None,
    train_norm: bool = False,
    norm_eps: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stride_in_1x1: bool = False,
    **options: Any,
) -> Backbone:
    """Build a backbone with random weights, or those that a plug-in gives it.

    Args:
        name: timm's name of a model, or a plug-in's.
        frozen_stages, train_norm, norm_eps, mean, std, stride_in_1x1: see `Backbone`.
        options: arguments of a plug-in.

    Raises:
        UserError: an unknown name or option, or a timm model without levels of strides 4, 8, 16 and 32.
    """
    if (plugin := known("backbone").get(name)) is not None:
        if timm.is_model(name):
            raise UserError(f"backbone '{name}' of {plugin.origin} has the name of one of timm's: rename it")
        spec = spec_of(f"backbone '{name}' ({plugin.origin})", plugin.object, options)
    else:
        check_options(_of_timm, "backbone_options", options, taken=1, more=_OWN_OPTIONS)
        spec = _of_timm(name)
    return Backbone(
        spec,
        name,
        frozen_stages=frozen_stages,
        train_norm=train_norm,
        norm_eps=norm_eps,
        mean=mean,
        std=std,
        stride_in_1x1=stride_in_1x1,
    )


def _three(name: str, values: Any, above: float = -math.inf) -> list[float]:
    """The three numbers of an option, above a limit. Raises UserError."""
    numbers = isinstance(values, (list, tuple)) and all(isinstance(x, (int, float)) for x in values)
    if not numbers or len(values) != 3 or not all(above < x < math.inf for x in values):
        limit = " above 0" if above == 0 else ""
        raise UserError(
            f"{name} of backbone_options is {values!r}: give three numbers{limit}, for R, G and B"
        )
    return [float(x) for x in values]


def _move_strides(body: nn.Module, name: str) -> None:
    """Move the stride of each bottleneck from its 3x3 convolution to the 1x1 one before."""
    moved = 0
    for block in body.modules():
        first, second = (getattr(block, part, None) for part in ("conv1", "conv2"))
        if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d):
            continue
        if first.kernel_size == (1, 1) and second.stride == (2, 2):
            first.stride, second.stride = second.stride, first.stride
            moved += 1
    if not moved:
        raise UserError(
            f"stride_in_1x1 is for ResNets with bottlenecks, such as resnet50, and {name} is not one: "
            "leave it out"
        )


def as_maps(output: Any) -> list[Tensor]:
    """The maps of what a body returned."""
    found = getattr(output, "feature_maps", output)
    return list(found.values()) if isinstance(found, Mapping) else list(found)


def spec_of(owner: str, factory: Callable[..., Any], options: dict[str, Any]) -> BodySpec:
    """What a plug-in's factory makes, `owner` in messages. Raises UserError where it breaks `Body`."""
    check_options(factory, "backbone_options", options, more=_OWN_OPTIONS)
    body: Any = construct(factory, "backbone_options", **options)
    if not isinstance(body, nn.Module):
        raise UserError(f"{owner} gives a {type(body).__name__}: return a torch.nn.Module")
    sizes: dict[str, list[int]] = {}
    for name in ("channels", "strides"):
        values = getattr(body, name, None)
        if not isinstance(values, Sequence) or not all(isinstance(value, int) for value in values):
            raise UserError(
                f"{owner} lacks the attribute {name}: set it to a list, of one int for each of its maps"
            )
        sizes[name] = list(values)
    stages = getattr(body, "stages", None)
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, str) for stage in stages):
        stages = []  # none, or an attribute of another meaning
    for stage in stages:
        if stage not in dict(body.named_modules()):
            raise UserError(f"{owner} has no submodule '{stage}', which its attribute stages names")
    names = [name for name, _ in body.named_parameters()]
    return BodySpec(
        body,
        channels=sizes["channels"],
        strides=sizes["strides"],
        mean=torch.as_tensor(getattr(body, "mean", _MEAN)).flatten().tolist(),
        std=torch.as_tensor(getattr(body, "std", _STD)).flatten().tolist(),
        stages=[[name for name in names if name.startswith(f"{stage}.")] for stage in stages],
        stage_names=list(stages),
    )


def _of_timm(name: str) -> BodySpec:
    if not timm.is_model(name):
        raise unknown_backbone(name, [*timm.list_models(), *known("backbone")])
    body = _create(name, _levels(name))
    cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    modules = body.feature_info.module_name()
    return BodySpec(
        body,
        channels=body.feature_info.channels(),
        strides=list(_STRIDES),
        mean=[255 * value for value in cfg.mean],
        std=[255 * value for value in cfg.std],
        stages=_stages(body, modules),
        stage_names=[modules[0], *modules],
        nhwc=getattr(body, "output_fmt", "NCHW") == "NHWC",
        timm_name=name,
    )


def _stages(body: nn.Module, modules: list[str]) -> list[list[str]]:
    """Names of the parameters of timm's stem and stages: in the order in which they are registered.

    The stem is what comes before the first stage.
    """
    names = [name for name, _ in body.named_parameters()]
    stages: list[list[str]] = []
    start = 0
    for stage in modules:
        prefixes = (f"{stage}.", f"{stage.replace('.', '_')}.")  # timm flattens some of the names
        inside = [index for index, name in enumerate(names) if name.startswith(prefixes)]
        if not stages:
            stages.append(names[: inside[0]] if inside else [])
            start = len(stages[0])
        end = inside[-1] + 1 if inside else start
        stages.append(names[start:end])
        start = max(start, end)
    return stages


def _freeze(spec: BodySpec, stages: int) -> list[str]:
    """Freeze the parameters of the stem and so many stages; give their names."""
    most = len(spec.stage_names) - 1
    if most < 0 <= stages:
        raise UserError(
            f"frozen_stages is {stages}, but the backbone does not name its stages: give it the attribute "
            "stages, or set frozen_stages: -1 in backbone_options"
        )
    if not -1 <= stages <= most:
        raise UserError(f"frozen_stages is {stages}: it must be -1 (none) to {most}")
    if stages == -1:
        return []
    if spec.timm_name and not spec.stages[max(stages, 1)]:
        raise UserError(
            f"frozen_stages is {stages}, but which parameters belong to {spec.stage_names[stages]} cannot "
            "be told: set frozen_stages: -1 in backbone_options"
        )
    frozen = [name for names in spec.stages[: stages + 1] for name in names]
    for name in frozen:
        spec.body.get_parameter(name).requires_grad_(False)
    return frozen


@functools.cache
def _levels(name: str) -> tuple[int, ...]:
    """timm's indices of the four levels, checked by a forward of nothing at sides that differ."""
    try:
        with blank():
            info = _create(name, None).feature_info
            found = dict(zip(info.reduction(), info.out_indices, strict=True))
            if not set(_STRIDES) <= set(found):
                raise UserError(
                    f"backbone '{name}' does not fit: its levels have strides {sorted(found)}, "
                    "but 4, 8, 16 and 32 are needed"
                )
            levels = tuple(found[stride] for stride in _STRIDES)
        with blank("cpu"), torch.no_grad():
            body = _create(name, levels)
            maps = body(torch.zeros(1, 3, 96, 160))
    except UserError:
        raise
    except Exception as error:  # timm's models each refuse in their own way
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"backbone '{name}' does not fit: it does not give four levels for images of any size "
            f"({reason}); choose one that does, such as resnet50 or convnext_tiny"
        ) from None
    axis = slice(1, 3) if getattr(body, "output_fmt", "NCHW") == "NHWC" else slice(2, 4)
    if any(tuple(x.shape[axis]) != (96 // s, 160 // s) for x, s in zip(maps, _STRIDES, strict=True)):
        raise UserError(f"backbone '{name}' does not fit: the strides of its maps are not 4, 8, 16 and 32")
    return levels


def _create(name: str, levels: tuple[int, ...] | None) -> Any:
    """Create the model; those with windows of a fixed image size are told to pad and take any size."""
    options: dict[str, Any] = {} if levels is None else {"out_indices": levels}
    any_size: dict[str, Any] = {"strict_img_size": False, "dynamic_img_pad": True}
    for accepted in (any_size, {"strict_img_size": False}, {}):
        with contextlib.suppress(TypeError):
            return timm.create_model(name, features_only=True, **options, **accepted)
    raise UserError(f"backbone '{name}' cannot be created by timm {timm.__version__}")
