"""From names and options to a detector: the one place where names become objects."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from msefpn import plugins
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import contract
from msefpn.models.adapter import AdaptedNeck
from msefpn.models.backbone import Backbone, make_backbone
from msefpn.models.blank import blank
from msefpn.models.construct import check_types, construct
from msefpn.models.detectors import Detector
from msefpn.necks import NECKS, Neck, Stack
from msefpn.plugins import find, register

for _name, _neck in NECKS.items():
    register("neck", _name)(_neck)


def build(
    config: Config,
    classes: Sequence[str],
    category_ids: Sequence[int] | None = None,
    *,
    owner: str = "this configuration",
) -> Detector:
    """Build a detector with random weights.

    Args:
        config: names and options of its parts.
        classes: names of the K classes.
        category_ids: their ids in the annotation file; None: 1..K.
        owner: what the configuration is of, for messages.

    Raises:
        UserError: an unknown name or option, a plug-in that is missing, or one that breaks its contract.
    """
    parts = ("neck", "backbone", "detector", "loss")
    plugins.require(config.plugins, parts, owner)
    check_neck_name(config.neck)
    factory = find("detector", config.detector)
    check_types(make_backbone, f"backbone '{config.backbone}'", config.backbone_options)
    backbone = make_backbone(config.backbone, **config.backbone_options)
    if foreign := _foreign("backbone", config.backbone):
        contract.verify_backbone(backbone, foreign)
    make_neck = functools.partial(_make_neck, config, backbone)
    detector = construct(
        factory, "detector_options", backbone, make_neck, len(classes), **config.detector_options
    )
    if not isinstance(detector, Detector):
        what = _foreign("detector", config.detector) or config.detector
        raise UserError(
            f"{what} gives a {type(detector).__name__}: return a Detector, such as "
            "OneStage(backbone, neck, head)"
        )
    needs = plugins.origins(config.uses(*parts))
    detector.config = dataclasses.replace(config, plugins=config.plugins | needs) if needs else config
    detector.classes = tuple(classes)
    detector.category_ids = tuple(category_ids or range(1, len(classes) + 1))
    return detector.to(memory_format=torch.channels_last)


def probe(config: Config) -> Detector:
    """Build a detector without data, to ask what it can do and needs; it may hold no values.

    Raises UserError as `build` does.
    """
    try:
        with blank():
            return build(config, ["any"])
    except UserError:
        raise
    except Exception:  # a plug-in may look at values
        return build(config, ["any"])


def _make_neck(config: Config, backbone: Backbone, **levels: Any) -> Neck:
    """The neck, or stack of necks, of a configuration; the options are those of its first.

    `levels` are the levels that the detector asks for, see `MakeNeck`; the options may ask for others.
    """
    first, *others = config.neck.split("+")
    options = levels | config.neck_options
    with torch.random.fork_rng(devices=[]):  # the same seed gives the heads the same weights on any neck
        members = [_first_neck(first, backbone.channels, backbone.strides, options)]
        for name in others:
            below = members[-1]
            channels = [below.out_channels] * len(below.out_strides)
            made = construct(find("neck", name), "neck", channels, below.out_strides, below.out_channels)
            if foreign := _foreign("neck", name):
                contract.verify_neck(made, channels, below.out_strides, foreign)
                made = made if isinstance(made, Neck) else AdaptedNeck(made, channels, below.out_strides)
            members.append(made)
        return Stack(members) if others else members[0]


def _first_neck(name: str, channels: list[int], strides: list[int], options: dict[str, Any]) -> Neck:
    """The neck on the backbone; one that does not know of levels is given those that are asked for."""
    make, what = find("neck", name), f"neck_options of {name}"
    foreign = _foreign("neck", name)
    if foreign is None:
        neck: Neck = construct(make, what, channels, strides, **options)
        return neck
    if _takes_levels(make):
        made, start, extra = construct(make, what, channels, strides, **options), 0, "none"
    else:
        options = dict(options)
        start, extra = options.pop("start_level"), options.pop("extra_levels")
        if not 0 <= start < len(strides):
            raise UserError(f"{what}: start_level {start} is not one of the {len(strides)} input levels")
        made = construct(make, what, channels[start:], strides[start:], **options)
    contract.verify_neck(made, channels[start:], strides[start:], foreign)
    if isinstance(made, Neck) and _takes_levels(make):
        return made
    levels = {"start_level": start, "extra_levels": extra}
    return construct(AdaptedNeck, what, made, channels, strides, **levels)


def _takes_levels(make: Callable[..., Any]) -> bool:
    """Whether a neck takes `start_level` and `extra_levels`, by name or among any options."""
    parameters = inspect.signature(make).parameters
    return {"start_level", "extra_levels"} <= set(parameters) or any(
        p.kind is p.VAR_KEYWORD for p in parameters.values()
    )


def check_neck_name(name: str) -> None:
    """Raise UserError for the name of a neck, or of a stack of necks, that does not exist."""
    first, *others = name.split("+")
    on_top = {member: getattr(find("neck", member), "on_top", False) for member in (first, *others)}
    if on_top[first]:
        raise UserError(f"neck '{name}': {first} reads another neck's pyramid: write fpn+{first}")
    for member in others:
        if not on_top[member]:
            raise UserError(f"neck '{name}': {member} reads a backbone's maps: it can only come first")


def _foreign(kind: str, name: str) -> str | None:
    """How messages call an object of a plug-in; None: it is not one."""
    plugin = plugins.known(kind).get(name)
    return None if plugin is None or plugin.origin == plugins.OURS else f"{kind} '{name}' ({plugin.origin})"
