"""A page and its charts: text is escaped, nothing is loaded, colours are distinct."""

import itertools
import json
import math
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from numpy.typing import NDArray

from msefpn.html.charts import Axis, Series, bar_chart, column_chart, line_chart
from msefpn.html.page import (
    COLORS,
    Section,
    TableCell,
    Tile,
    alert,
    code,
    details,
    document,
    figure,
    gallery,
    missing,
    table,
    tiles,
)

EVIL = "<img src=x onerror=alert(1)>\"'&"
TAME = "w" * len(EVIL)
GIF = b"GIF89a"
JPEG = b"\xff\xd8\xff\xe0rest"
VOID = {"meta", "link", "img", "path"}


class Reader(HTMLParser):
    """Reads a page: its elements, its attributes, and whether each element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def everything(word: str) -> str:
    lines = line_chart(
        word, [Series(word, [1, 2], [0, 1]), Series("b", [2, 1], [0, 1], 1)], Axis(word), Axis(word)
    )
    bars = bar_chart(word, [word], [Series(word, [0.5])], str, about=word)
    columns = column_chart(word, [word], [Series(word, [1.0])], str, below=[(word, [word])], about=word)
    parts = [
        tiles([Tile(word, word, word, word)]),
        table([word], [[word], [TableCell(word, "good", 0.3, title=word)]], caption=word),
        gallery([figure(JPEG, word, word)]),
        missing(word),
        alert(word),
        details(word, code(word)),
        *(lines, bars, columns),
    ]
    return document(word, word, [Section(word, parts, word, word), Section(word, [])], footer=word)


def test_texts_of_others_stay_texts() -> None:
    evil, tame = Reader(everything(EVIL)), Reader(everything(TAME))
    assert evil.open == tame.open == []
    assert [tag for tag, _ in evil.found] == [tag for tag, _ in tame.found]
    assert [set(attributes) for _, attributes in evil.found] == [
        set(attributes) for _, attributes in tame.found
    ]
    assert sum(EVIL in word for word in evil.words) == sum(word == TAME for word in tame.words) > 15


def test_page_loads_nothing() -> None:
    text = everything("word")
    found = Reader(text).found
    links = [value for _, attributes in found for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = [attributes["content"] for tag, attributes in found if "http-equiv" in attributes]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]


def test_contents_lead_to_each_section() -> None:
    found = Reader(document("t", "l", [Section("A b", []), Section("A b", []), Section("<>", [])])).found
    targets = [attributes["href"] for tag, attributes in found if tag == "a"]
    assert targets == [f"#{attributes['id']}" for tag, attributes in found if tag == "section"]
    assert len(set(targets)) == 3


def test_image_is_embedded_by_its_format() -> None:
    assert 'src="data:image/jpeg;base64,/9j/4HJlc3Q="' in figure(JPEG, "a")
    assert "data:image/webp" in figure(b"RIFF....WEBP", "a")
    with pytest.raises(ValueError, match="JPEG"):
        figure(GIF, "a")


def test_line_is_drawn_to_scale_and_broken_where_nothing_is() -> None:
    one = Series("a", [0, 5, math.nan, 10], [0, 1, 2, 4])
    text = line_chart("t", [one], Axis("x"), Axis("y"))
    assert 'd="M0.00 100.00L25.00 50.00M100.00 0.00"' in text
    assert re.findall(r'top:([\d.]+)%">([\d.]+)<', text) == [
        ("100.00", "0"),
        ("80.00", "2"),
        ("60.00", "4"),
        ("40.00", "6"),
        ("20.00", "8"),
        ("0.00", "10"),
    ]
    (data,) = (
        attributes["data-series"] for _, attributes in Reader(text).found if "data-series" in attributes
    )
    assert json.loads(data or "")["series"][0]["points"] == [[0, 0], [1, 5], [4, 10]]


@pytest.mark.parametrize("y", [[0.0], [3.0, 3.0], [1e-5, 2e-5], [-1.0, 1e6], [math.nan]])
@pytest.mark.parametrize("log", [False, True])
def test_odd_values_are_drawn(y: list[float], log: bool) -> None:
    text = line_chart("t", [Series("a", y, range(1, len(y) + 1))], Axis("x", log=log), Axis("y"))
    assert Reader(text).open == []
    assert "nan" not in text


def test_long_line_is_thinned() -> None:
    steps = range(9000)
    text = line_chart("t", [Series("a", [1.0] * 9000, steps)], Axis("x"), Axis("y"))
    assert len(text) < 20_000


def test_names_at_the_ends_do_not_touch() -> None:
    lines = [Series(f"s{number}", [0.5 + number / 1000], [1], number) for number in range(6)]
    text = line_chart("t", lines, Axis("x"), Axis("y"))
    ends = text[text.index('class="ends"') :]
    places = sorted(float(at) for at in re.findall(r"top:([\d.]+)%;--c", ends))
    assert len(places) == 6
    assert min(b - a for a, b in itertools.pairwise(places)) >= 7.4
    assert 0 <= places[0] <= places[-1] <= 100


def _colors(theme: int) -> tuple[str, list[str]]:
    css = resources.files("msefpn.html").joinpath("page.css").read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--(\w+): light-dark\(([^)]+)\);", css))
    split = {name: pair.split(", ")[theme] for name, pair in pairs.items()}
    return split["card"], [split[f"s{slot}"] for slot in range(COLORS)]


def _linear(color: str) -> NDArray[np.float64]:
    value = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ottosson, A perceptual color space for image processing, 2020."""
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    lab: NDArray[np.float64] = np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(linear, 0, 1))
    return lab


SIGHT = {  # Machado et al., 2009, severity 1
    "usual": np.eye(3),
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("sight", SIGHT)
def test_colors_are_told_apart(theme: int, sight: str) -> None:
    card, colors = _colors(theme)
    weights = [0.2126, 0.7152, 0.0722]  # relative luminance, WCAG 2
    for color in colors:
        dark, light = sorted(float(_linear(one) @ weights) for one in (card, color))
        assert (light + 0.05) / (dark + 0.05) >= 3
    seen = [_oklab(np.array(SIGHT[sight]) @ _linear(color)) for color in colors]
    apart = {
        pair: 100 * np.linalg.norm(seen[pair[0]] - seen[pair[1]])
        for pair in itertools.combinations(range(COLORS), 2)
    }
    assert min(apart.values()) > 7
    assert min(value for pair, value in apart.items() if max(pair) < 4) > 9
