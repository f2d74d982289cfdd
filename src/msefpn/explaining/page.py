"""The layout of the page of `msefpn explain`, and its summary in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.explaining.maps import MapSection, draw_section, photographs
from msefpn.html.charts import Series, column_chart
from msefpn.html.page import (
    Html,
    Section,
    Tile,
    alert,
    card,
    details,
    document,
    grid,
    joined,
    missing,
    paragraph,
    swatch,
    table,
    tag,
    tiles,
)

_ABOUT_GAP = (
    "Do neighbouring levels find the same cells similar? Linear CKA of neighbouring levels at each stage (C: "
    "input of the neck, F: at its width, T: after the top-down path, P: output): 1 if they distinguish the "
    "cells in the same way, 0 as expected by chance."
)
_LIMITS = (
    "Linear CKA (Kornblith et al., arXiv 1905.00414) compares similarities between cells, not channels: it "
    "does not change when the channels of a map are rotated or multiplied by one factor. The finer map is "
    "averaged to the cells of the coarser one; cells whose centre is padding are ignored. HSIC is estimated "
    "without bias (Nguyen et al., arXiv 2010.15327): the plain estimate is far too high for few cells and "
    "many channels.",
    "CKA shows whether a stage makes neighbouring levels more similar, for any neck, and how certain that is "
    "over images.",
    "CKA does not show that more similar is better. Levels of a network with random weights can be more "
    "similar than those of a trained one. Adding the upper level to the lower one, as every top-down path "
    "does, raises CKA without any learning, and so do maps that only encode the border of the image. The "
    "fine detail of a fine level is averaged away first. A few strong channels can dominate (Davari et al., "
    "arXiv 2210.16156). How well a detector works is measured by AP.",
)
_ALIKE = ("more similar", "less similar")
_RISES = ("rises more", "rises less")


def explanation_page(
    result: dict[str, Any], pixels: NDArray[np.uint8], sections: Sequence[MapSection]
) -> str:
    """Lay out the page.

    Args:
        result: the numbers, as in explain.json.
        pixels: the image (H, W, 3) RGB.
        sections: the maps.
    """
    ratio = f"{pixels.shape[1]} / {pixels.shape[0]}"
    parts = [
        Section("Detections", [photographs(pixels), _detections(result, pixels.shape[:2])]),
        Section("The semantic gap", [*_sizes(result), *_gap(result["similarity"])], _ABOUT_GAP, short="Gap"),
    ]
    parts += [draw_section(section, ratio) for section in sections]
    runs = ", ".join(f"{run['name']} ({run['neck']})" for run in result["runs"])
    lead = (
        f"{Path(result['image']).name} through {runs}: the input, the inner maps and the output of the neck."
    )
    sizes = "; ".join(
        f"{run['name']}: {run['seen_at'][1]} x {run['seen_at'][0]} px" for run in result["runs"]
    )
    return document(
        "Seeing the pyramid",
        lead,
        parts,
        footer=f"Made by msefpn explain. Image size: {sizes}. Its json file has the numbers.",
    )


def _detections(result: dict[str, Any], size: tuple[int, int]) -> Html:
    """Detections of each run over the photograph, coloured by the level that they were found on."""
    return grid(*(_detections_of(run, result["score"], size) for run in result["runs"]))


def _detections_of(run: dict[str, Any], score: float, size: tuple[int, int]) -> Html:
    found = run["detections"]
    if found is None:
        return card(tag("h3", run["name"]), missing("the detector needs proposals: none were given"))
    boxes, unit = [], max(size) / 40
    for item in reversed(found):  # the best on top
        left, top, right, bottom = item["box"]
        box = {"x": left, "y": top, "width": max(0.0, right - left), "height": max(0.0, bottom - top)}
        tip = tag("title", f"{item['class']} {item['score']:.2f}" + _level(item["level"]))
        style = f"--c:var(--s{_colour(item['level'])})"
        place = {"x": left, "y": max(top, 0.03 * size[1]) - 0.1 * unit, "font_size": f"{unit:.1f}"}
        name = tag("text", f"{item['class']} {item['score']:.2f}", **place)
        boxes.append(tag("g", tag("rect", tip, **box), name, style=style))
    view = f"0 0 {size[1]} {size[0]}"
    drawing = tag(
        "svg",
        *boxes,
        viewBox=view,
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{len(found)} objects",
    )
    photo = tag("div", drawing, class_="over plain", style=f"aspect-ratio:{size[1]} / {size[0]}")
    counts = {item["level"]: sum(one["level"] == item["level"] for one in found) for item in found}
    keys = [
        tag("span", swatch(_colour(level)), f"{count}" + (_level(level) or " objects"))
        for level, count in sorted(counts.items(), key=lambda pair: pair[0] or "")
    ]
    said = f"{len(found)} objects with score {score:g} or above"
    return card(tag("h3", run["name"]), paragraph(said), photo, tag("div", *keys, class_="legend"))


def _level(level: str | None) -> str:
    return f" from P{level}" if level else ""


def _colour(level: str | None) -> int:
    return max(0, int(float(level)) - 2) if level else 0


def _sizes(result: dict[str, Any]) -> list[Html]:
    """A warning if two runs used different image sizes."""
    sizes = {" x ".join(map(str, reversed(run["seen_at"]))) for run in result["runs"]}
    if len(sizes) == 1:
        return []
    said = f"The runs used different image sizes, {' and '.join(sorted(sizes))} pixels: set one with --size."
    return [alert(said)]


def _gap(similarity: dict[str, Any]) -> list[Html]:
    """Charts and table of the similarity of neighbouring levels at each stage."""
    rows = similarity["runs"]
    if not rows[0]["stages"]:
        return [missing("no two levels are both input and output of the neck: there is nothing to compare")]
    count = similarity["images"]
    about = "One image only: give more with --images to get an interval."
    if count > 1:
        about = (
            f"Over {count} images. ± is the standard deviation over single images; an interval needs more."
        )
    if rows[0]["change"]["low"] is not None:
        about = (
            f"Over {count} images. ± is the standard deviation over single images, under it the 95 % "
            "interval over the choice of images, by bootstrap. It does not cover another training of the "
            "same network."
        )
    names = dict.fromkeys(row["run"] for row in rows)
    charts = [_chart(name, [row for row in rows if row["run"] == name]) for name in names]
    return [
        tiles(_tiles(similarity)),
        paragraph(about),
        grid(*charts),
        card(_table(similarity)),
        details("What this measure shows, and what it does not show", *(paragraph(line) for line in _LIMITS)),
    ]


def _chart(name: str, rows: Sequence[dict[str, Any]]) -> Html:
    series = [
        Series(stage, [_value(row["stages"][stage]) for row in rows if stage in row["stages"]], color=number)
        for number, stage in enumerate(rows[0]["stages"])
    ]
    whole = [one for one in series if len(one.y) == len(rows)]
    return column_chart(name, [row["levels"] for row in rows], whole, lambda value: f"{value:.2f}", high=1.0)


def _table(similarity: dict[str, Any]) -> Html:
    rows = list(similarity["runs"])
    if "difference" in similarity:
        step = similarity["difference"]
        rows.append({"run": "difference", "levels": "mean"} | step)
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages"]))
    last = len(rows) - 1 if "difference" in similarity else len(rows)
    cells = [
        [
            row["run"],
            row["levels"],
            *(_cell(row["stages"].get(stage), sign=n == last) for stage in stages),
            _cell(row["change"], sign=True),
        ]
        for n, row in enumerate(rows)
    ]
    marked = [number for number, row in enumerate(rows) if row["levels"] == "mean"]
    return table(["run", "levels", *stages, "P minus C"], cells, marked=marked)


def _tiles(similarity: dict[str, Any]) -> list[Tile]:
    found = []
    for row in similarity["runs"]:
        if row["levels"] == "mean":
            ends = [_value(row["stages"][stage]) for stage in ("C", "P")]
            change = "C to P " + _text(row["change"], sign=True, spread=False)
            found.append(Tile(row["run"], "→".join(f"{end:.2f}" for end in ends), note=change))
    if "difference" in similarity:
        step = similarity["difference"]
        names = " minus ".join(step["of"])
        pairs = (("difference in P", step["stages"]["P"]), ("difference in C to P", step["change"]))
        for (title, estimate), words in zip(pairs, (_ALIKE, _RISES), strict=True):
            note = f"{names}{_interval(estimate)}: {_verdict(estimate, words)}"
            found.append(Tile(title, f"{_value(estimate):+.2f}", note=note))
    return found


def _value(estimate: dict[str, Any]) -> float:
    return math.nan if estimate["value"] is None else float(estimate["value"])


def _cell(estimate: dict[str, Any] | None, *, sign: bool) -> Html | str:
    """A value with its standard deviation over images, and its interval below it."""
    if estimate is None:
        return ""
    text = _text(estimate | {"low": None}, sign=sign)
    low = _interval(estimate).strip(" ()")
    return joined([text, *([tag("span", low, class_="under")] if low else [])])


def _text(estimate: dict[str, Any], *, sign: bool = False, spread: bool = True) -> str:
    if estimate["value"] is None:
        return "–"
    text = format(round(estimate["value"], 2) + 0.0, "+.2f" if sign else ".2f")  # 0.0: no minus zero
    if spread and estimate["spread"] is not None:
        text += f" ± {estimate['spread']:.2f}"
    return text + _interval(estimate, sign=sign)


def _interval(estimate: dict[str, Any], *, sign: bool = False) -> str:
    if estimate["low"] is None:
        return ""
    form = "+.2f" if sign or estimate["low"] < 0 else ".2f"
    return f" ({estimate['low']:{form}} to {estimate['high']:{form}})"


def summary(result: dict[str, Any]) -> list[str]:
    """The numbers in words: a line for each run and one for the difference."""
    similarity = result["similarity"]
    lines = []
    for row in similarity["runs"]:
        if row["levels"] == "mean" and row["stages"]:
            before, after = (_text(row["stages"][stage], spread=False) for stage in ("C", "P"))
            change = _text(row["change"], sign=True, spread=False)
            lines.append(
                f"{row['run']}: CKA of neighbouring levels {before} at the input of the neck, "
                f"{after} at its output, {change}"
            )
    if "difference" in similarity:
        step = similarity["difference"]
        after = _text(step["stages"]["P"], sign=True, spread=False)
        verdict = _verdict(step["stages"]["P"], _ALIKE)
        lines.append(f"{' minus '.join(step['of'])}, at the output of the neck: {after}, {verdict}")
    return lines


def _verdict(step: dict[str, Any], words: tuple[str, str]) -> str:
    if step["low"] is None:
        return "too few images for an interval"
    if step["low"] <= 0 <= step["high"]:
        return "no difference seen"
    return words[step["low"] < 0]
