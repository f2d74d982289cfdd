"""The configuration of a run: a frozen dataclass; YAML in, YAML out.

A recipe is a YAML file with some of `Config`'s keys and, if it builds on another one, `parent: NAME`. Under
`published` it may say what is known of it, see `Published`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from msefpn.errors import UserError, unknown_name

RECIPES = resources.files("msefpn") / "recipes"


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. The defaults are the paper's: mmdetection 2.x, 1x schedule."""

    detector: str = "faster_rcnn"
    """Name in `msefpn.models.DETECTORS`."""
    detector_options: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the detector."""
    backbone: str = "resnet50"
    """Name of a timm model with four levels."""
    backbone_options: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the backbone: frozen_stages, train_norm."""
    neck: str = "mse_fpn"
    """Name in `msefpn.necks.NECKS`."""
    neck_options: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments of the neck."""
    init: str = "imagenet"
    """Initial weights: imagenet (timm's hub), none, or a file of a backbone or a whole detector."""

    size: str = "1333x800"
    """Images are resized, ratio kept, to fit into this: longest side x shortest side, or one number."""
    augment: str = "paper"
    """Augmentation while training: none, paper (flip), multiscale or strong."""

    epochs: int = 12
    batch: int = 16
    """Images per step, over all devices and accumulated passes."""
    accumulate: int = 1
    """Forward passes per step."""
    optimizer: str = "sgd"
    """sgd (momentum 0.9) or adamw."""
    lr: float = 0.02
    """Learning rate for 16 images per step; scaled linearly to `batch`."""
    weight_decay: float = 1e-4
    schedule: str = "step"
    """step (x0.1 after the epochs in `drops`) or cosine (to zero, by step)."""
    drops: tuple[int, ...] = (8, 11)
    warmup: int = 500
    """Steps of linear warm-up from 0.001 of the learning rate."""
    clip: float = 0.0
    """Largest gradient norm; 0: not clipped."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights; 0: none."""

    keep_empty: bool = True
    """Whether images without boxes take part in training; mmdetection leaves them out."""

    seed: int = 0
    device: str = "auto"
    """auto, cpu or gpu."""
    devices: int = 1
    """Processes or GPUs."""
    precision: str = "auto"
    """fp32, bf16, or auto: bf16 on a capable GPU, else fp32."""
    workers: int = 2
    """Processes that load images, per device."""

    def __post_init__(self) -> None:
        parse_size(self.size)
        for name, low in _LOWEST.items():
            if not low <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: it must be finite and at least {low}")
        if self.seed >= 1 << 64:
            raise UserError(f"seed is {self.seed}: it must be below 2 to the power of 64")
        if self.batch % (self.devices * self.accumulate):
            raise UserError(
                f"batch {self.batch} cannot be shared by {self.devices} devices x {self.accumulate} passes: "
                "choose a multiple"
            )
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr is {self.lr}: it must be finite and above 0")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema is {self.ema}: it must be at least 0 and below 1")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)

    @property
    def learns_masks(self) -> bool:
        """Whether the detector needs the objects' masks."""
        return self.detector == "mask_rcnn"

    @property
    def takes_proposals(self) -> bool:
        """Whether the detector looks at given regions."""
        return self.detector == "fast_rcnn"

    @property
    def scaled_lr(self) -> float:
        """The learning rate for this run's batch (linear scaling rule, arXiv 1706.02677)."""
        return self.lr * self.batch / 16


@dataclass(frozen=True)
class Published:
    """What is published of a recipe's setting."""

    source: str
    """Who published it, and on what."""
    AP: float | None = None
    """AP in percent; None: no figure."""
    gain: float | None = None
    """AP in percent over FPN in the same setting; None: no figure."""
    gpus: int = 1
    """GPUs of that run."""
    batch: int = 16
    """Images a step of that run, over all GPUs."""


_LOWEST = {
    **dict.fromkeys(("epochs", "batch", "accumulate", "devices"), 1),
    **dict.fromkeys(("workers", "weight_decay", "warmup", "clip", "seed"), 0),
}
CHOICES = {
    "augment": ("none", "paper", "multiscale", "strong"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("step", "cosine"),
    "device": ("auto", "cpu", "gpu"),
    "precision": ("auto", "fp32", "bf16"),
}
"""The values of keys that have few."""
_TYPES = typing.get_type_hints(Config)
_ABOUT = ("parent", "published")
"""Keys of a recipe that are no values."""


def parse_size(size: str) -> tuple[int, int]:
    """Read '1333x800' or '320' as (longest side, shortest side), pixels. Raises UserError."""
    parts = str(size).lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"size '{size}' is not understood: give one number or two, like 320 or 1333x800")
    long, short = max(map(int, parts)), min(map(int, parts))
    if not 32 <= short <= long <= 8192:
        raise UserError(f"size '{size}' is out of range: each side must be 32 to 8192 pixels")
    return long, short


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(item.name[:-5] for item in RECIPES.iterdir() if item.name.endswith(".yaml"))


def is_recipe(name: str) -> bool:
    """Whether this names a recipe: one that ships, or a YAML file, there or not."""
    return name in recipe_names() or Path(name).suffix in (".yaml", ".yml")


def load_recipe(name: str, **overrides: Any) -> Config:
    """Resolve a recipe (a shipped name or a YAML file) and override the values that are not None."""
    given = {key: value for key, value in overrides.items() if value is not None}
    return from_dict(_override(_read_chain(name), given), source=name)


def load_row(name: str, base: str | None, **overrides: Any) -> Config:
    """Resolve a recipe as a row of a comparison.

    Args:
        name: a shipped name or a YAML file.
        base: a recipe that the row's own lines, without its parent's, are put over; None: the row stands
            alone.
        overrides: values that are put over all, where not None.
    """
    if base is None:
        return load_recipe(name, **overrides)
    own = {key: value for key, value in _read_yaml(name).items() if key not in _ABOUT}
    given = {key: value for key, value in overrides.items() if value is not None}
    return from_dict(_override(_override(_read_chain(base), own), given), source=name)


def published(name: str) -> Published | None:
    """What is published of a recipe, if it says so. Raises UserError where that is not understood."""
    about = _read_yaml(name).get("published")
    if about is None:
        return None
    known = {"source": (str,), "AP": (int, float), "gain": (int, float), "gpus": (int,), "batch": (int,)}
    if (
        not isinstance(about, dict)
        or not {"source"} <= set(about) <= set(known)
        or not all(type(value) in known[key] for key, value in about.items())
    ):
        raise UserError(
            f"recipe '{name}': published must hold a source (text), and numbers of: {', '.join(known)}"
        )
    return Published(**about)


def from_dict(values: dict[str, Any], source: str) -> Config:
    """Build a Config from plain values, as read from YAML. Raises UserError naming `source` and the key."""
    return Config(**{key: _coerce(key, value, source) for key, value in values.items()})


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML that `load_recipe` reads back to an equal one."""
    values = dataclasses.asdict(config) | {"drops": list(config.drops)}
    return yaml.safe_dump(values, sort_keys=False)


def _read_chain(name: str) -> dict[str, Any]:
    values = _read_yaml(name)
    values.pop("published", None)
    parent = values.pop("parent", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"recipe '{name}': parent is {parent!r}, but must be a recipe's name or file")
    base = _read_yaml(parent)
    base.pop("published", None)
    if "parent" in base:
        raise UserError(f"recipe '{name}': its parent '{parent}' has a parent itself; one level is the most")
    return _override(base, values)


def _override(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Put values over those of a parent; the options of another detector are not this one's."""
    before = base.get("detector", Config.detector)
    if values.get("detector", before) != before:
        base = {key: value for key, value in base.items() if key != "detector_options"}
    return _merged(base, values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Put values over others, dictionaries key by key."""
    inner = {
        key: _merged(base[key], value)
        for key, value in values.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | values | inner


def _read_yaml(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(
                f"recipe file '{name}' does not exist: check the path, or name one of {recipe_names()}"
            )
        content = path.read_bytes()
    elif name in recipe_names():
        content = (RECIPES / f"{name}.yaml").read_bytes()
    else:
        raise unknown_name("recipe", name, recipe_names())
    try:
        values = yaml.safe_load(content.decode("utf-8")) or {}
    except UnicodeDecodeError:
        raise UserError(f"recipe '{name}' is no UTF-8 text: save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe '{name}' is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not _has_names(values):
        raise UserError(f"recipe '{name}' must hold 'key: value' lines, each key a name")
    return values


def _has_names(values: dict[Any, Any]) -> bool:
    """Whether all keys are strings, also of the dictionaries inside."""
    inner = (value for value in values.values() if isinstance(value, dict))
    return all(isinstance(key, str) for key in values) and all(map(_has_names, inner))


def _coerce(key: str, value: Any, source: str) -> Any:
    if key not in _TYPES:
        raise UserError(f"recipe '{source}': {unknown_name('key', key, _TYPES)}")
    kind = typing.get_origin(_TYPES[key]) or _TYPES[key]
    if isinstance(value, bool) == (kind is bool):  # else True would be the number 1
        with contextlib.suppress(ValueError, OverflowError):
            if kind is float and isinstance(value, (int, float, str)):
                return float(value)  # YAML reads 1e-4 as a string
            if kind is str and isinstance(value, (str, int)):
                return str(value)
            if kind is tuple and isinstance(value, (list, tuple)) and all(type(i) is int for i in value):
                return tuple(value)
            if isinstance(value, kind) and kind is not tuple:
                return value
    raise UserError(f"recipe '{source}': {key} is {value!r}, but must be of type {kind.__name__}")
