"""A self-contained HTML page: one file without network, dark and light, for a laptop and a phone.

Every function gives `Html`, and escapes what is not. The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
COLORS = 6
"""Colours of the palette, `var(--s0)` on, told apart in both themes, by the colour-blind too."""
_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}


class Html(str):
    """Markup that goes into a page as it is; a plain text is escaped."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """Turn a value into markup: `Html` as it is, anything else as text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Put parts, escaped where they are not `Html`, one after the other."""
    return Html(between.join(map(escaped, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Write an element; `class_` and `aria_label` are written `class` and `aria-label`, None is left out."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    pairs = [f' {key}="{html.escape(str(value))}"' for key, value in named if value is not None]
    return Html(f"<{name}{''.join(pairs)}>{joined(content)}</{name}>")


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    body: Sequence[Html]
    about: str | Html = ""
    """A sentence or two under the title."""
    short: str = ""
    """Its name in the table of contents, if not the title."""


def page(title: str, lead: str | Html, sections: Sequence[Section], *, footer: str = "") -> str:
    """Write a whole page with its table of contents.

    Args:
        title: heading, and title of the window.
        lead: a sentence under it.
        sections: what it shows.
        footer: how it was made.

    Returns:
        The HTML document.
    """
    names = _unique([_identifier(section.title) for section in sections])
    pairs = list(zip(names, sections, strict=True))
    contents = [tag("a", section.short or section.title, href=f"#{name}") for name, section in pairs]
    parts = [
        tag(
            "section",
            tag("h2", section.title),
            *([tag("p", section.about, class_="about")] if section.about else []),
            *section.body,
            id=name,
        )
        for name, section in pairs
    ]
    switch = tag("button", "◐", id="theme", type="button", title="dark or light", aria_label="dark or light")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            tag("title", title),
            f"<style>{_file('page.css')}</style></head><body>",
            tag("header", tag("h1", title), tag("p", lead, class_="lead"), switch),
            tag("nav", tag("div", *contents), aria_label="contents"),
            tag("main", joined(parts, "\n")),
            tag("footer", tag("p", footer)),
            '<dialog><img alt=""></dialog>',
            f"<script>{_file('page.js')}</script></body></html>",
            "",
        ]
    )


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text."""

    text: object
    tone: str = ""
    """good, bad or quiet."""
    heat: float | None = None
    """How strongly the cell is filled, 0..1."""
    color: int = 0
    """Of the fill: a slot of the palette."""
    title: str | None = None
    """Shown when the pointer rests on it."""


def table(
    heads: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str = "",
    text: bool = False,
    words: Sequence[int] = (),
    marked: Sequence[int] = (),
) -> Html:
    """Write a table that scrolls sideways where it is wider than the page.

    Args:
        heads: the columns' names; the first column stands still when the others scroll.
        rows: cells: `Cell`, `Html` or text; numbers are best given as text.
        caption: what it shows.
        text: all columns are texts, aligned left and wrapped, rather than numbers.
        words: the columns that are.
        marked: numbers of the rows that stand out.
    """
    top = tag(
        "tr",
        *(
            tag("th", head, scope="col", class_="words" if at in words else None)
            for at, head in enumerate(heads)
        ),
    )
    lines = [
        tag(
            "tr",
            *(_cell(cell, ["words"] * (at in words)) for at, cell in enumerate(row)),
            class_="marked" if number in marked else None,
        )
        for number, row in enumerate(rows)
    ]
    whole = tag(
        "table",
        *([tag("caption", caption)] if caption else []),
        tag("thead", top),
        tag("tbody", *lines),
        class_="text" if text else None,
    )
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption or "table")


def _cell(value: object, names: list[str]) -> Html:
    if not isinstance(value, Cell):
        plain = not isinstance(value, Html) and len(str(value)) > 20
        return tag("td", value, class_=" ".join(names) or None, title=value if plain else None)
    names = [*names, value.tone] if value.tone else names
    style = None
    if value.heat is not None:
        names += ["heat"] + ["full"] * (value.heat > 0.72)
        style = f"--heat:{value.heat:.3f};--c:var(--s{value.color % COLORS})"
    return tag("td", value.text, class_=" ".join(names) or None, style=style, title=value.title)


@dataclass(frozen=True)
class Tile:
    """One number that counts."""

    name: str
    value: str
    unit: str = ""
    note: str | Html = ""


def tiles(items: Iterable[Tile]) -> Html:
    """Write numbers large, side by side."""
    return tag(
        "div",
        *(
            tag(
                "dl",
                tag("dt", item.name),
                tag(
                    "dd",
                    item.value,
                    *([tag("span", item.unit, class_="unit")] * bool(item.unit)),
                    class_="value",
                ),
                *([tag("dd", item.note, class_="small")] if item.note else []),
                class_="tile",
            )
            for item in items
        ),
        class_="tiles",
    )


def picture(data: bytes, alt: str, caption: str | Html = "") -> Html:
    """Write a picture into the page; a click shows it large.

    Args:
        data: a JPEG, WebP or PNG file.
        alt: what it shows, for those who cannot see it.
        caption: under it.

    Raises:
        ValueError: the file is of another kind.
    """
    kind = next((name for start, name in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("a picture of a page is a JPEG, WebP or PNG file")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = Html(f'<img src="{source}" alt="{html.escape(alt)}">')
    return tag("figure", image, *([tag("figcaption", caption)] if caption else []), class_="shot")


def gallery(pictures: Iterable[Html], *, together: int = 1) -> Html:
    """Put pictures side by side, as many as fit; or `together` of them, or two such rows, also on a phone."""
    if together == 1:
        return tag("div", *pictures, class_="shots")
    style = f"--wide:{4 if together == 2 else together};--narrow:{min(2, together)}"
    return tag("div", *pictures, class_="shots beside", style=style)


def grid(*parts: Html) -> Html:
    """Put parts side by side where there is room, else one below the other."""
    return tag("div", *parts, class_="grid")


def card(*parts: Html) -> Html:
    """Put a frame around parts."""
    return tag("div", *parts, class_="card")


def paragraph(text: object) -> Html:
    """Write a paragraph."""
    return tag("p", text, class_="about")


def missing(text: str) -> Html:
    """Say what cannot be shown, and why."""
    return tag("div", text, class_="missing")


def alert(text: object) -> Html:
    """Say what a reader must not overlook."""
    return tag("div", text, class_="alert", role="note")


def code(text: str, *, wrap: bool = False) -> Html:
    """Write a text with its lines as they are."""
    return tag("pre", tag("code", text), class_="wrap" if wrap else None)


def details(summary: str, *parts: Html) -> Html:
    """Hide parts behind a line that opens them."""
    return tag("details", tag("summary", summary), *parts)


def swatch(color: int) -> Html:
    """Draw a colour of the palette, as a key before a name."""
    return tag("span", class_="swatch", style=f"--c:var(--s{color % COLORS})")


def _file(name: str) -> str:
    return resources.files("msefpn.html").joinpath(name).read_text(encoding="utf-8")


def _identifier(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"


def _unique(names: Sequence[str]) -> list[str]:
    return [name if name not in names[:at] else f"{name}-{at}" for at, name in enumerate(names)]
