"""The configuration of a run: a frozen dataclass; YAML in, YAML out.

A recipe is a YAML file with some of `Config`'s keys and, if it builds on another one, `parent: NAME`. Under
`published` it may say what is known of it, see `Published`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from msefpn.errors import UserError, unknown_name
from msefpn.options import check_bounds, option
from msefpn.reading import parse_yaml, read_yaml, shown

RECIPES = resources.files("msefpn") / "recipes"
DEVICES = ("auto", "cpu", "gpu")
AUTO_BATCH = 0
"""The `batch` that stands for the largest that fits."""
CONVOLUTIONS = ("auto", "library", "products")
"""How convolutions are done on the CPU, see `msefpn.models.convolution`."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. The defaults are the paper's: mmdetection 2.x, 1x schedule."""

    detector: str = option("faster_rcnn", "detector, see `msefpn plugins`", plugin="detector")
    detector_options: dict[str, Any] = option({}, "arguments of the detector", plugin="loss", flag=False)
    anchors: str = option(
        "given",
        "anchors: given (by the detector and its options), auto (chosen on the training boxes), the scale of "
        "the smallest in strides, or a YAML file of the detector's options",
    )
    backbone: str = option("resnet50", "timm model with four levels, or a plug-in", plugin="backbone")
    backbone_options: dict[str, Any] = option(
        {}, "arguments of the backbone: frozen_stages, train_norm, ...", flag=False
    )
    neck: str = option("mse_fpn", "neck, see `msefpn plugins`; with bfp on top as in fpn+bfp", plugin="neck")
    neck_options: dict[str, Any] = option({}, "arguments of the neck", flag=False)
    init: str = option(
        "imagenet",
        "initial weights: imagenet (timm's hub), none, a name of `msefpn models`, hf://USER/NAME, or a file "
        "of a backbone or a detector",
    )
    size: str = option(
        "1333x800", "longest x shortest side, pixels, that images are resized to fit into; or one number"
    )
    augment: str = option(
        "paper",
        "augmentation while training: none, paper (flip), multiscale, strong (small sets), mosaic, mixup, "
        "or a plug-in",
        plugin="augmentation",
    )
    epochs: int = option(12, "passes over the training data", low=1)
    batch: int = option(
        16,
        "images per step, over all nodes, devices and accumulated passes; auto: the largest power of two "
        "that fits into the GPU's memory",
        low=1,
        words={"auto": AUTO_BATCH},
    )
    accumulate: int = option(
        1, "forward passes per step; the processes exchange gradients after the last one only", low=1
    )
    optimizer: str = option("sgd", "sgd (momentum 0.9) or adamw", choices=("sgd", "adamw"))
    lr: float = option(0.02, "learning rate for 16 images per step; scaled linearly to the batch", above=0)
    weight_decay: float = option(1e-4, "weight decay", low=0)
    schedule: str = option(
        "step",
        "step (x 0.1 at each milestone) or cosine (to zero, by step)",
        choices=("step", "cosine"),
    )
    milestones: tuple[int, ...] = option((8, 11), "epochs after which the learning rate drops")
    warmup: float = option(
        500, "steps of linear warm-up from 0.001 of the learning rate; below 1: their share of the run", low=0
    )
    grad_clip: float = option(0.0, "largest gradient norm; 0: not clipped", low=0)
    ema: float = option(
        0.0, "decay of the exponential moving average of the weights; 0: none", low=0, below=1
    )
    patience: int = option(0, "epochs without a better AP after which training stops; 0: never", low=0)
    keep_empty: bool = option(
        True,
        "train on images without annotations, and with a side under 32 pixels, too; mmdetection leaves them "
        "out",
    )
    antialias: bool = option(
        True,
        "smooth where images are shrunk, also in evaluation and prediction; mmdetection does not",
    )
    logger: tuple[str, ...] = option(
        ("csv", "jsonl"),
        "loggers: csv, jsonl, tensorboard, wandb, mlflow, trackio, or plug-ins",
        plugin="logger",
    )
    callback: tuple[str, ...] = option((), "callbacks of plug-ins", plugin="callback")
    seed: int = option(0, "decides weights, order and augmentation", low=0, below=1 << 64)
    device: str = option("auto", "auto, cpu or gpu", choices=DEVICES)
    devices: int = option(1, "number of GPUs, or of processes on the CPU, on each node", low=1)
    nodes: int = option(1, "number of machines; torchrun or srun starts the command on each", low=1)
    timeout: float = option(
        600.0, "seconds that a process waits for the others, when they start and in each exchange", above=0
    )
    sync_bn: bool = option(
        False,
        "batch normalisation that is trained takes mean and variance over the images of all devices "
        "(SyncBatchNorm, GPUs only): slower, for few images per device",
    )
    bucket_view: bool = option(
        True,
        "gradients lie in the buffers that several devices exchange (gradient_as_bucket_view): saves memory "
        "of the size of the weights",
    )
    grad_checkpoint: bool = option(
        False,
        "compute the backbone's stages again in the backward pass instead of keeping their maps: less "
        "memory, about a third more time in the backbone",
    )
    precision: str = option(
        "auto",
        "fp32, bf16, fp16 (with a loss scaler; GPUs only), or auto: bf16 on a capable GPU",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    convolution: str = option(
        "auto",
        "convolutions on the CPU: by the library, as products of sums (faster on AVX2), or auto",
        choices=CONVOLUTIONS,
    )
    compile: bool = option(False, "compile the detector first (inductor); it takes a minute or more")
    checkpoint_every: str = option(
        "15min", "steps or time between two states that are kept within an epoch: 500, 90s, 15min, 2h"
    )
    keep: int = option(1, "states that are kept: resume.ckpt, and older ones as resume-STEP.ckpt", low=1)
    workers: int = option(2, "processes that load images, per device", low=0)
    plugins: dict[str, str] = option(
        {}, "where names come from that are not the package's own; written by runs", flag=False
    )

    def __post_init__(self) -> None:
        parse_size(self.size)
        check_bounds(self)
        if self.warmup > 1 and self.warmup % 1:
            raise UserError(
                f"warmup is {self.warmup}: give whole steps, or a share of the run below 1, such as 0.05"
            )
        if self.batch % (shares := self.processes * self.accumulate):
            nodes = f"{self.nodes} nodes x " * (self.nodes > 1)
            raise UserError(
                f"batch {self.batch} cannot be shared by {nodes}{self.devices} devices x {self.accumulate} "
                f"passes: choose a multiple of {shares}"
            )

    @property
    def processes(self) -> int:
        """Processes that train together, over all nodes."""
        return self.nodes * self.devices

    @property
    def per_pass(self) -> int:
        """Images of one forward pass on one device."""
        return self.batch // (self.processes * self.accumulate)

    @property
    def scaled_lr(self) -> float:
        """The learning rate for this run's batch (linear scaling rule, arXiv 1706.02677)."""
        return self.lr * self.batch / 16

    def uses(self, *kinds: str) -> list[tuple[str, str]]:
        """The names that may be a plug-in's, as pairs of kind and name; of all kinds where none is given."""
        found = []
        for item in dataclasses.fields(self):
            kind, value = item.metadata["plugin"], getattr(self, item.name)
            if kind and (not kinds or kind in kinds):
                names = value.split("+") if kind == "neck" else _strings(value)
                found += [(kind, name) for name in names]
        return found


def _strings(value: Any) -> list[str]:
    """All strings in a value, also in dictionaries and lists."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [text for item in inner for text in _strings(item)]


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


_TYPES = typing.get_type_hints(Config)
_ABOUT = ("parent", "published")
"""Keys of a recipe that are not settings."""
_OF_ALL_NECKS = ("out_channels", "start_level", "extra_levels")
"""Options of a neck that stay when a recipe's neck is replaced."""


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
    for key, value in given.items():
        _coerce(key, value, "options")
    return from_dict(_override(_read_chain(name), given), source=f"recipe '{name}'")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` and `key.path=value`, values in YAML, as plain values. Raises UserError."""
    found: dict[str, Any] = {}
    for text in settings:
        path, sign, value = text.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise UserError(f"--set {text}: write key=value, such as neck_options.gate=none")
        if keys[0] not in _TYPES:
            raise UserError(f"--set {text}: {unknown_name('key', keys[0], _TYPES)}")
        try:
            content = parse_yaml(value)
        except ValueError as error:
            raise UserError(f"--set {text}: the value {error}") from None
        for key in reversed(keys[1:]):
            content = {key: content}
        _coerce(keys[0], content, f"--set {text}")
        found = _merged(found, {keys[0]: content})
    return found


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
    return from_dict(_override(_override(_read_chain(base), own), given), source=f"recipe '{name}'")


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


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Build a Config from plain values, as read from YAML. Raises UserError naming `source` and the key."""
    if not _has_names(values):
        raise UserError(f"{source} must hold 'key: value' lines, each key a name")
    return Config(**{key: _coerce(key, value, source) for key, value in values.items()})


def to_yaml(config: Config) -> str:
    """Write a configuration as YAML that `load_recipe` reads back to an equal one."""
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(config).items()
    }
    if config.batch == AUTO_BATCH:
        values["batch"] = "auto"
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
    """Put values over those of a parent; options of another detector or neck are not this one's."""
    before = {key: base.get(key, getattr(Config, key)) for key in ("detector", "neck")}
    other = [key for key, name in before.items() if values.get(key, name) != name]
    if "detector" in other:
        base = {key: value for key, value in base.items() if key != "detector_options"}
    if "neck" in other and isinstance(options := base.get("neck_options"), dict):
        base = base | {"neck_options": {key: options[key] for key in _OF_ALL_NECKS if key in options}}
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
        values = read_yaml(path, "correct the recipe") or {}
    elif name in recipe_names():
        values = parse_yaml((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    else:
        raise unknown_name("recipe", name, recipe_names())
    if not isinstance(values, dict) or not _has_names(values):
        raise UserError(f"recipe '{name}' must hold 'key: value' lines, each key a name")
    return values


def _has_names(values: Mapping[Any, Any]) -> bool:
    """Whether all keys are strings, also of the dictionaries inside."""
    inner = (value for value in values.values() if isinstance(value, dict))
    return all(isinstance(key, str) for key in values) and all(map(_has_names, inner))


def _coerce(key: str, value: Any, source: str) -> Any:
    if key not in _TYPES:
        raise UserError(f"{source}: {unknown_name('key', key, _TYPES)}")
    kind = typing.get_origin(_TYPES[key]) or _TYPES[key]
    words = Config.__dataclass_fields__[key].metadata["words"]
    if isinstance(value, str) and value in words:
        return words[value]
    if words and value in words.values():
        raise UserError(f"{source}: {key} is {value}, but must be at least 1, or {' or '.join(words)}")
    if isinstance(value, bool) == (kind is bool):  # else True would be the number 1
        with contextlib.suppress(ValueError, OverflowError):
            if kind is float and isinstance(value, (int, float, str)):
                return float(value)  # YAML reads 1e-4 as a string
            if kind is str and isinstance(value, (str, int)):
                return str(value)
            if kind is tuple and isinstance(value, (list, tuple)):
                (item, *_) = typing.get_args(_TYPES[key])
                if all(type(one) is item for one in value):
                    return tuple(value)
            if isinstance(value, kind) and kind is not tuple:
                return value
    raise UserError(f"{source}: {key} is {shown(value)}, but must be of type {kind.__name__}")
