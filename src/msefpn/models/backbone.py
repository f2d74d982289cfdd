"""Backbones: any timm model that gives four feature levels at strides 4, 8, 16 and 32."""

import contextlib
import difflib
import functools
from typing import Any

import timm
import torch
from torch import Tensor, nn

from msefpn.errors import UserError
from msefpn.models.fold import join

STRIDES = [4, 8, 16, 32]
SMALLEST_EPS = 1e-30
"""Stands for an epsilon of 0, which torch 2.11's batch normalisation refuses; no variance notices it."""


class Backbone(nn.Module):
    """A timm model as a feature extractor, frozen as mmdetection freezes its backbones.

    Args:
        name: timm's name of the model.
        frozen_stages: 0: the stem; 1: also the first stage (up to the map of stride 4), and so on; -1: none.
        train_norm: let batch normalisation update its statistics; else they stay fixed, scale and shift are
            trained outside the frozen stages, and the convolution before does all of the work, see `fold`.
        norm_eps: epsilon of batch normalisation; None: the model's own.

    Attributes:
        channels: channels of the four maps.
        strides: their strides.
        mean: (3,) mean of the images that the weights were trained on, 0..255, RGB.
        std: (3,) their standard deviation.

    Raises:
        UserError: the name is unknown or the model has not these four levels.
    """

    def __init__(
        self,
        name: str,
        *,
        frozen_stages: int = 1,
        train_norm: bool = False,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.name, self.train_norm = name, train_norm
        self.body, modules = _extractor(name)
        self.channels: list[int] = self.body.feature_info.channels()
        self.strides = list(STRIDES)
        self.nhwc = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        self.mean = [255 * value for value in cfg.mean]
        self.std = [255 * value for value in cfg.std]
        for module in self.norms():
            module.eps = module.eps if norm_eps is None else max(norm_eps, SMALLEST_EPS)
        self.frozen = _freeze(self.body, modules, frozen_stages)
        join(self.body)
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, channels[i], H / strides[i], W / strides[i]) of normalised images (B, 3, H, W)."""
        maps: list[Tensor] = self.body(x)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.nhwc else maps

    def norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """Its batch normalisation layers."""
        return [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> "Backbone":
        """Switch the mode; fixed statistics stay in evaluation mode."""
        super().train(mode)
        for module in self.norms():
            scale = module.weight
            module.train(mode and self.train_norm and (scale is None or scale.requires_grad))
        return self


def _extractor(name: str) -> tuple[Any, list[str]]:
    """The model and the names of the modules that give its four maps."""
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() has all names"
        raise UserError(f"unknown backbone '{name}': {hint}")
    body = _create(name, _levels(name))
    return body, body.feature_info.module_name()


@functools.cache
def _levels(name: str) -> tuple[int, ...]:
    """timm's indices of the four levels, proved by a forward without data at a size of no round number."""
    try:
        with torch.device("meta"):
            info = _create(name, None).feature_info
            found = dict(zip(info.reduction(), info.out_indices, strict=True))
            if not set(STRIDES) <= set(found):
                raise UserError(
                    f"backbone '{name}' does not fit: its levels have strides {sorted(found)}, "
                    "but 4, 8, 16 and 32 are needed"
                )
            levels = tuple(found[stride] for stride in STRIDES)
            body = _create(name, levels)
            maps = body(torch.empty(1, 3, 96, 160))
    except UserError:
        raise
    except Exception as error:  # timm's models each refuse in their own way
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(
            f"backbone '{name}' does not fit: it gives no four levels for images of any size "
            f"({reason}); choose one that does, such as resnet50 or convnext_tiny"
        ) from None
    axis = slice(1, 3) if getattr(body, "output_fmt", "NCHW") == "NHWC" else slice(2, 4)
    if any(tuple(x.shape[axis]) != (96 // s, 160 // s) for x, s in zip(maps, STRIDES, strict=True)):
        raise UserError(f"backbone '{name}' does not fit: its maps have not the strides 4, 8, 16 and 32")
    return levels


def _create(name: str, levels: tuple[int, ...] | None) -> Any:
    """Create the model; those with windows of a fixed image size are told to pad and take any size."""
    options: dict[str, Any] = {} if levels is None else {"out_indices": levels}
    any_size: dict[str, Any] = {"strict_img_size": False, "dynamic_img_pad": True}
    for known in (any_size, {"strict_img_size": False}, {}):
        with contextlib.suppress(TypeError):
            return timm.create_model(name, features_only=True, **options, **known)
    raise UserError(f"backbone '{name}' cannot be created by timm {timm.__version__}")


def _freeze(body: nn.Module, modules: list[str], stages: int) -> list[str]:
    """Freeze all parameters registered up to the end of a stage; give their names."""
    if not -1 <= stages <= len(modules):
        raise UserError(f"frozen_stages is {stages}: it must be -1 (none) to {len(modules)}")
    if stages == -1:
        return []
    stage = modules[max(stages, 1) - 1]
    prefixes = (f"{stage}.", f"{stage.replace('.', '_')}.")  # timm flattens some of the names
    names = [name for name, _ in body.named_parameters()]
    inside = [index for index, name in enumerate(names) if name.startswith(prefixes)]
    if not inside:
        raise UserError(
            f"frozen_stages is {stages}, but which parameters belong to {stage} cannot be told: "
            "set frozen_stages: -1 in backbone_options"
        )
    frozen = names[: inside[0] if stages == 0 else inside[-1] + 1]
    for name in frozen:
        body.get_parameter(name).requires_grad_(False)
    return frozen
