"""What would give more objects a positive anchor, by trying it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from msefpn.data.advice import as_size
from msefpn.data.anchors.choice import AnchorChoice, choose_anchors, options_text, with_choice
from msefpn.data.anchors.match import Objects, resized_objects
from msefpn.data.anchors.rules import rule_for, without_anchors
from msefpn.data.anchors.share import MANY_MISSED, AnchorShare, as_percent, measure_share
from msefpn.data.coco import CocoData

_LARGER = (1.5, 2.0)
_OTHERS = ("faster_rcnn", "retinanet", "fcos")
_LOOKED_AT = 3000
_STEP = 32  # pixels: sides of images are padded to multiples of it


@dataclass(frozen=True)
class Chosen:
    """The detector whose anchors are looked at."""

    detector: str
    options: Mapping[str, Any] = field(default_factory=dict)
    neck_options: Mapping[str, Any] = field(default_factory=dict)
    auto: bool = False
    """Choose the anchors that the options leave open on the boxes, as training with `anchors: auto` does."""


@dataclass(frozen=True)
class AnchorAdvice:
    """How the training boxes meet the anchors of a detector, and what would change it."""

    chosen: Chosen
    share: AnchorShare | None
    """None where it is not known how the detector assigns."""
    choice: AnchorChoice | None = None
    """The anchors that were chosen, where they were to be."""
    advice: str = ""
    """One sentence; empty where few objects are missed."""

    def lines(self) -> list[str]:
        """As text."""
        name = self.chosen.detector
        if self.share is None:
            return [f"anchors: not measured for {name}, which has none of its own or is a plug-in"]
        auto = (
            f", chosen on these boxes ({options_text(self.choice.options)})"
            if self.choice is not None
            else ""
        )
        first, *more = self.share.lines()
        kind = "points" if self.share.points else "anchors"
        return [f"{kind} of {name}{auto}, images resized and not augmented:", f"  {first}", *more]


def advise_on_anchors(data: CocoData, size: tuple[int, int], chosen: Chosen) -> AnchorAdvice:
    """Run a detector's own rule over a split, and over alternatives where it misses many objects.

    Args:
        data: the training split.
        size: longest and shortest side that images will be resized to fit into, pixels.
        chosen: the detector.

    Raises:
        UserError: options of anchors that are not numbers.
    """
    objects = resized_objects(data, size)
    choice, options = _settled(objects, chosen)
    rule = rule_for(chosen.detector, options, chosen.neck_options)
    if rule is None or not len(objects):
        return AnchorAdvice(chosen, None)
    share = measure_share(objects, rule)
    if share.share <= MANY_MISSED:
        return AnchorAdvice(chosen, share, choice)
    tried = [
        f"{name} leaves {as_percent(other)}"
        for name, other in _trials(data, size, chosen)
        if other < share.share - 0.01
    ]
    found = "; ".join(tried) if tried else "no other anchors, size or detector that was tried leaves fewer"
    text = f"{as_percent(share.share)} of the objects get no positive anchor; tried instead: {found}"
    return AnchorAdvice(chosen, share, choice, text)


def missed_share(data: CocoData, size: tuple[int, int], chosen: Chosen) -> float:
    """Share of the objects without a positive anchor at an input size; 0 where it is not known."""
    objects = resized_objects(data, size, most=_LOOKED_AT)
    _, options = _settled(objects, chosen)
    rule = rule_for(chosen.detector, options, chosen.neck_options)
    return 0.0 if rule is None else measure_share(objects, rule).share


def _settled(objects: Objects, chosen: Chosen) -> tuple[AnchorChoice | None, Mapping[str, Any]]:
    """The choice of anchors, where they are to be chosen, and the options with it."""
    if not chosen.auto:
        return None, chosen.options
    choice = choose_anchors(objects, chosen.detector, chosen.options, chosen.neck_options)
    return choice, with_choice(chosen.detector, chosen.options, choice)


def _trials(data: CocoData, size: tuple[int, int], chosen: Chosen) -> Iterator[tuple[str, float]]:
    """What to type instead, and the share that is missed then."""
    if not chosen.auto:
        few = resized_objects(data, size, most=_LOOKED_AT)
        bare = without_anchors(chosen.detector, chosen.options)
        choice = choose_anchors(few, chosen.detector, bare, chosen.neck_options)
        if choice is not None:
            yield f"--anchors auto ({options_text(choice.options)})", choice.share.share
    for factor in _LARGER:
        long, short = (int(np.ceil(side * factor / _STEP)) * _STEP for side in size)
        yield f"--size {as_size((long, short))}", missed_share(data, (long, short), chosen)
    for other in _OTHERS:
        if other != chosen.detector:
            changed = replace(chosen, detector=other, options={}, neck_options={})
            yield f"--detector {other}", missed_share(data, size, changed)
