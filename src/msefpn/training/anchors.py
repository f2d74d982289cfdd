"""`anchors` of a configuration: what a user gave into numbers, and numbers chosen on the training boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from msefpn import plugins
from msefpn.config import Config, parse_size
from msefpn.data.anchors import (
    MANY_MISSED,
    as_percent,
    choose_anchors,
    measure_share,
    number,
    options_part,
    resized_objects,
    rule_for,
    with_choice,
    without_anchors,
)
from msefpn.data.coco import CocoData
from msefpn.errors import UserError, unknown_name
from msefpn.reading import read_yaml

AUTO, GIVEN = "auto", "given"
_SCALES = 0.25, 64.0


def settle_anchors(config: Config, asked: Mapping[str, Any]) -> Config:
    """Turn a scale or a file of anchors into the detector's options, and look whether `auto` can be met.

    Anchors that the user gave now replace those of the recipe; those of `detector_options` that the user gave
    now are kept by a recipe's `auto`.

    Args:
        config: the whole configuration.
        asked: what the user gave on top of the recipe, fields of `Config`.

    Returns:
        A configuration whose `anchors` is `given` or `auto`.

    Raises:
        UserError: a detector without such anchors, a scale or file that is not understood, or two answers.
    """
    if config.anchors == GIVEN:
        return config
    part, own = options_part(config.detector), asked.get("anchors") is not None
    if part is None:
        if own or config.anchors != AUTO:
            raise UserError(f"anchors {config.anchors}: {_why_none(config.detector)}; leave anchors out")
        return replace(config, anchors=GIVEN)
    key, names = part
    if own:
        also = [name for name in names if name in _part_of(asked.get("detector_options"), key)]
        if also:
            raise UserError(
                f"anchors {config.anchors} and detector_options.{key}.{also[0]} are both given: leave one out"
            )
        config = replace(config, detector_options=without_anchors(config.detector, config.detector_options))
    if config.anchors == AUTO:
        return config
    values, before = _read(config.anchors, config.detector, names), _part_of(config.detector_options, key)
    for name, value in values.items():
        if before.get(name, value) != value:
            other = f"detector_options.{key}.{name} {before[name]}"
            raise UserError(f"anchors {config.anchors} contradicts {other}: leave one out")
    options = {**config.detector_options, key: {**before, **values}}
    rule_for(config.detector, options, config.neck_options)
    return replace(config, anchors=GIVEN, detector_options=options)


def resolve_anchors(config: Config, data: CocoData, strides: Sequence[int]) -> tuple[Config, list[str]]:
    """Choose the anchors of `auto` on the training boxes of a new run, and say how the anchors meet these.

    Args:
        config: with `anchors` auto or given, see `settle_anchors`.
        data: the training split.
        strides: of the pyramid's levels.

    Returns:
        The configuration with the numbers, and lines to print before the first step.
    """
    detector, neck = config.detector, config.neck_options
    rule = rule_for(detector, config.detector_options, neck, strides=strides)
    if rule is None:
        return config, []
    objects = resized_objects(data, parse_size(config.size))
    if not len(objects):
        return replace(config, anchors=GIVEN), []
    lines = []
    if config.anchors == AUTO:
        choice = choose_anchors(objects, detector, config.detector_options, neck, strides=strides)
        options = with_choice(detector, config.detector_options, choice)
        config = replace(config, anchors=GIVEN, detector_options=options)
        lines = [
            "anchors: " + (f"chosen on the boxes, {choice}" if choice else "as detector_options sets them")
        ]
        rule = rule_for(detector, options, neck, strides=strides) or rule
    share = measure_share(objects, rule)
    if share.share > MANY_MISSED:
        seen = (
            f"{as_percent(share.share)} of the training objects get no positive anchor at size {config.size}"
        )
        what = "msefpn check shows which, and what else to try"
        auto = "" if lines or options_part(detector) is None else "train with --anchors auto, or see: "
        lines.append(f"warning: {seen}, so nothing is learned from them: {auto}{what}")
    return config, lines


def as_asked(run: Config, wanted: Config) -> Config:
    """The configuration of a run as it was asked for: with open anchors, where these were to be chosen."""
    bare = [without_anchors(one.detector, one.detector_options) for one in (run, wanted)]
    part = options_part(run.detector)
    if wanted.anchors != AUTO or part is None or run.detector != wanted.detector:
        return run
    rest = [{key: value or {} for key, value in ({part[0]: {}} | one).items()} for one in bare]
    options = wanted.detector_options if rest[0] == rest[1] else run.detector_options
    return replace(run, anchors=AUTO, detector_options=options)


def _why_none(detector: str) -> str:
    if detector in plugins.OUR_NAMES["detector"]:
        return f"{detector} has no anchors"
    return f"where the plug-in {detector} keeps its anchors is not known: set them in detector_options"


def _part_of(options: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    return dict((options or {}).get(key) or {})


def _read(text: str, detector: str, names: Sequence[str]) -> dict[str, Any]:
    """The options that a scale or a file stands for."""
    try:
        scale = float(text)
    except ValueError:
        return _read_file(Path(text), detector, names)
    if "anchor_scale" not in names:
        raise UserError(
            f"anchors {text}: {detector}'s anchors are not of one scale: give auto, or a YAML file with "
            f"{' and '.join(names)}"
        )
    return {"anchor_scale": number(scale, "anchors", low=_SCALES[0], high=_SCALES[1])}


def _read_file(path: Path, detector: str, names: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"anchors '{path}' is not understood: give auto, given, a scale in strides such as 4, or a YAML "
            f"file that exists, with {' and '.join(names)}"
        )
    values = read_yaml(path, f"write lines like '{names[0]}: ...' into it")
    if not isinstance(values, dict) or not values:
        raise UserError(f"anchors '{path}' does not hold anchors: write lines like '{names[0]}: ...' into it")
    for name in values:
        if name not in names:
            raise unknown_name(f"key in '{path}' for {detector}", str(name), names)
    return values
