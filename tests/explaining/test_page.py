"""The page of `explain`, from plain arrays: cells lie where they belong, colours and words fit numbers."""

import base64
import copy
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msefpn.explaining.maps import (
    MAX_CELLS,
    MapBlock,
    MapPanel,
    MapSection,
    WeightBars,
    colour_scale,
    draw_section,
    inside,
)
from msefpn.explaining.page import explanation_page, summary

PIXELS = np.full((60, 80, 3), 200, np.uint8)


def estimate(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "spread": 0.05, "low": low, "high": high}


def about(name: str) -> dict[str, Any]:
    found = [{"class": "<u>", "score": 0.9, "box": [1.0, 2.0, 30.0, 40.0], "level": "3"}]
    return {"name": name, "neck": "fpn", "seen_at": [60, 80], "detections": found}


def result() -> dict[str, Any]:
    rows = [
        {
            "run": run,
            "levels": "mean",
            "stages": {"C": estimate(0.2), "P": estimate(0.3)},
            "change": estimate(0.1),
        }
        for run in ("<one>", "two")
    ]
    step = {
        "of": ["two", "<one>"],
        "stages": {"P": estimate(0.1, 0.05, 0.2)},
        "change": estimate(0.0, -0.1, 0.1),
    }
    similarity = {"images": 20, "runs": rows, "difference": step}
    return {
        "image": "a<u>.jpg",
        "score": 0.3,
        "runs": [about("<one>"), about("two")],
        "similarity": similarity,
    }


def section(*panels: MapPanel, kind: str = "energy") -> MapSection:
    return MapSection("C: maps", "C", "", [MapBlock("", "", kind, [("<one>", list(panels))])])


def heat(html: str) -> list[np.ndarray[Any, Any]]:
    found = re.findall(r"data:image/png;base64,([^\"]+)", html)
    return [
        np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int) for text in found
    ]


def test_cells_reach_beyond_the_picture_where_it_was_padded() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    html = draw_section(section(MapPanel("C5", "", values, (1.1, 1.2))), "80 / 60").body[0]
    assert "width:120.000%;height:110.000%" in html
    (drawn,) = heat(html)
    assert drawn.shape == (3, 4, 3)
    assert inside(values, (1.1, 1.2)).shape == (3, 3)  # the fourth column's centre is beyond 1
    assert "0.00 to 10.00×" in html


def test_all_panels_of_a_block_share_one_scale() -> None:
    low, high = (np.full((4, 4), value, np.float32) for value in (1.0, 3.0))
    one, other = heat(
        draw_section(section(MapPanel("a", "", low, (1, 1)), MapPanel("b", "", high, (1, 1))), "1").body[0]
    )
    assert one[0, 0].tolist() == [68, 1, 84]  # the ends of viridis
    assert other[0, 0].tolist() == [253, 231, 37]


def test_sequential_scale_is_viridis() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    expected = matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255
    assert np.abs(colour_scale("energy") - expected).max() < 6


def test_a_gate_of_one_half_is_white_and_passing_is_red() -> None:
    values = np.array([[0.5, 0.7], [0.3, 0.5]], np.float32)
    (drawn,) = heat(draw_section(section(MapPanel("a", "", values, (1, 1)), kind="gate"), "1").body[0])
    assert drawn[0, 0].min() > 240
    assert drawn[0, 1, 0] > 2 * drawn[0, 1, 2]
    assert drawn[1, 0, 2] > 2 * drawn[1, 0, 0]


def test_large_maps_are_averaged() -> None:
    values = np.tile(np.array([0.0, 1.0], np.float32), (4, 300))
    (drawn,) = heat(draw_section(section(MapPanel("a", "", values, (1, 1))), "1").body[0])
    assert max(drawn.shape) == MAX_CELLS


def test_weights_of_channels_are_counted() -> None:
    bars = WeightBars("from C5", np.array([0.01, 0.02, 0.97], np.float32))
    block = MapBlock("weights", "", "channels", bars=[("run", [bars])])
    html = draw_section(MapSection("SEM", "SEM", "", [block]), "1").body[0]
    assert "0.00 to 0.05: 2" in html
    assert "0.95 to 1.00: 1" in html
    assert "3 channels, mean 0.33" in html


def test_names_are_text_and_nothing_else() -> None:
    html = explanation_page(
        result(), PIXELS, [section(MapPanel("C2", "", np.ones((2, 2), np.float32), (1, 1)))]
    )
    assert "<one>" not in html
    assert "<u>" not in html
    assert "a&lt;u&gt;.jpg" in html
    assert "different image sizes" not in html


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (estimate(0.1, 0.05, 0.2), "more similar"),
        (estimate(-0.1, -0.2, -0.05), "less similar"),
        (estimate(0.1, -0.1, 0.2), "no difference seen"),
        (estimate(0.1), "too few images"),
        (estimate(None), "–"),
    ],
)
def test_words_follow_the_interval(step: dict[str, Any], said: str) -> None:
    numbers = copy.deepcopy(result())
    numbers["similarity"]["difference"]["stages"]["P"] = step
    assert said in summary(numbers)[-1]
    assert said in explanation_page(numbers, PIXELS, [])


def test_what_is_missing_is_said() -> None:
    numbers = result()
    numbers["runs"][0] |= {"detections": None, "seen_at": [30, 40]}
    numbers["similarity"] = {
        "images": 1,
        "runs": [{"run": "a", "levels": "mean", "stages": {}, "change": estimate(None)}],
    }
    html = explanation_page(numbers, PIXELS, [])
    assert "none were given" in html
    assert "40 x 30 and 80 x 60" in html
    assert "nothing to compare" in html
