"""The page of `msefpn explain`, from plain arrays and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.explain.maps import Section, drawn_section, photographs
from msefpn.html import page as shell
from msefpn.html.charts import Series, column_chart
from msefpn.html.page import Html, Tile, card, details, grid, joined, paragraph, swatch, table, tag, tiles

_ABOUT_GAP = (
    "Do cells that look alike to one level look alike to the next? Linear CKA of neighbouring levels at "
    "each stage (C into the neck, F at its width, T after the top-down path, P out of it): 1, they tell "
    "the cells apart in the same way; 0, as if by chance."
)
_LIMITS = (
    "Linear CKA (Kornblith et al., arXiv 1905.00414) compares how alike cells are to each other, not "
    "channels: it does not change when a map is rotated in its channels or multiplied by one factor. The "
    "finer map is averaged to the coarser one's cells; cells whose centre is padding are left out. HSIC "
    "is estimated without bias (Nguyen et al., arXiv 2010.15327): the plain estimate lies far too high "
    "where cells are few and channels many.",
    "It can say whether a stage brings neighbouring levels closer, for any neck, and how surely over images.",
    "It cannot say that closer is better: levels of a network with random weights can be more alike than "
    "those of a trained one. Adding the upper level to the lower one, as any top-down path does, raises it "
    "without anything being learned; two maps that know nothing but where the border is are alike, too. "
    "Fine detail, which a fine level is there for, is averaged away before. A few strong "
    "channels can decide it (Davari et al., arXiv 2210.16156). What a detector finds is told by its AP.",
)
_ALIKE = ("more alike", "less alike")
_RISES = ("rises more", "rises less")


def page(result: dict[str, Any], pixels: NDArray[np.uint8], sections: Sequence[Section]) -> str:
    """Draw the page.

    Args:
        result: the numbers, as in explain.json.
        pixels: the picture (H, W, 3) RGB.
        sections: the maps.
    """
    ratio = f"{pixels.shape[1]} / {pixels.shape[0]}"
    parts = [
        shell.Section(
            "What was found", [photographs(pixels), _found(result, pixels.shape[:2])], short="Found"
        ),
        shell.Section(
            "The semantic gap", [*_sizes(result), *_gap(result["similarity"])], _ABOUT_GAP, short="Gap"
        ),
    ]
    parts += [drawn_section(section, ratio) for section in sections]
    runs = ", ".join(f"{run['name']} ({run['neck']})" for run in result["runs"])
    lead = f"{Path(result['image']).name} through {runs}: what the neck takes in, does and gives out."
    sizes = "; ".join(
        f"{run['name']} saw it at {run['seen_at'][1]} x {run['seen_at'][0]} px" for run in result["runs"]
    )
    return shell.page(
        "Seeing the pyramid",
        lead,
        parts,
        footer=f"Made by msefpn explain; {sizes}. The numbers are in explain's json.",
    )


def _found(result: dict[str, Any], size: tuple[int, int]) -> Html:
    """Each run's detections over the photograph, coloured by the level that they are pooled from."""
    return grid(*(_detections(run, result["score"], size) for run in result["runs"]))


def _detections(run: dict[str, Any], score: float, size: tuple[int, int]) -> Html:
    found = run["detections"]
    if found is None:
        return card(
            tag("h3", run["name"]), shell.missing("the detector looks at given regions: none were given")
        )
    boxes, unit = [], max(size) / 40
    for item in reversed(found):  # the best on top
        left, top, right, bottom = item["box"]
        box = {"x": left, "y": top, "width": max(0.0, right - left), "height": max(0.0, bottom - top)}
        tip = tag("title", f"{item['class']} {item['score']:.2f}" + _level(item["level"]))
        style = f"--c:var(--s{_colour(item['level'])})"
        name = tag(
            "text", f"{item['class']} {item['score']:.2f}", x=left, y=max(top, 0.03 * size[1]) - 0.1 * unit
        )
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
    said = f"{len(found)} objects of score {score:g} or more"
    return card(tag("h3", run["name"]), paragraph(said), photo, tag("div", *keys, class_="legend"))


def _level(level: str | None) -> str:
    return f" from P{level}" if level else ""


def _colour(level: str | None) -> int:
    return max(0, int(float(level)) - 2) if level else 0


def _sizes(result: dict[str, Any]) -> list[Html]:
    """Say so where two runs saw the picture at different sizes."""
    sizes = {" x ".join(map(str, reversed(run["seen_at"]))) for run in result["runs"]}
    if len(sizes) == 1:
        return []
    said = (
        f"The runs saw the picture at different sizes, {' and '.join(sorted(sizes))} pixels: --size sets one."
    )
    return [shell.alert(said)]


def _gap(similarity: dict[str, Any]) -> list[Html]:
    """Charts and table of how alike neighbouring levels are at each stage."""
    rows = similarity["runs"]
    if not rows[0]["stages"]:
        return [shell.missing("no two levels are both taken in and given out: there is nothing to compare")]
    count = similarity["images"]
    about = "One image alone: more of them, with --images, give an interval."
    if count > 1:
        about = (
            f"Over {count} images. ± is the standard deviation over single images; an interval needs more."
        )
    if rows[0]["change"]["low"] is not None:
        about = (
            f"Over {count} images. ± is the standard deviation over single images, under it the 95 % "
            "interval over the choice of images, by resampling them. It says nothing of another training "
            "of the same network."
        )
    names = dict.fromkeys(row["run"] for row in rows)
    charts = [_chart(name, [row for row in rows if row["run"] == name]) for name in names]
    return [
        tiles(_tiles(similarity)),
        paragraph(about),
        grid(*charts),
        card(_table(similarity)),
        details("What this measure can say, and what it cannot", *(paragraph(line) for line in _LIMITS)),
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
    """A value with its spread over images, and its interval under it."""
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
    """What the numbers say, a line for each run and one for the difference."""
    similarity = result["similarity"]
    lines = []
    for row in similarity["runs"]:
        if row["levels"] == "mean" and row["stages"]:
            before, after = (_text(row["stages"][stage], spread=False) for stage in ("C", "P"))
            change = _text(row["change"], sign=True, spread=False)
            lines.append(
                f"{row['run']}: CKA of neighbouring levels {before} into the neck, {after} out, {change}"
            )
    if "difference" in similarity:
        step = similarity["difference"]
        after = _text(step["stages"]["P"], sign=True, spread=False)
        verdict = _verdict(step["stages"]["P"], _ALIKE)
        lines.append(f"{' minus '.join(step['of'])}, out of the neck: {after}, {verdict}")
    return lines


def _verdict(step: dict[str, Any], words: tuple[str, str]) -> str:
    if step["low"] is None:
        return "too few images for an interval"
    if step["low"] <= 0 <= step["high"]:
        return "no difference seen"
    return words[step["low"] < 0]
