"""A self-contained HTML page: one file that loads nothing, dark and light, for a laptop and a phone.

Every function returns `Html` and escapes all other text. The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
COLORS = 6
"""Colours of the palette, from `var(--s0)`; distinct in both themes, also for the colour-blind."""
_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"RIFF": "webp"}


class Html(str):
    """Markup, which goes into a page unchanged; a plain `str` is escaped."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """Return `Html` unchanged, and any other value as escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Join parts, after escaping those that are not `Html`."""
    return Html(between.join(map(escaped, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Write an element; `class_` becomes `class`, `aria_label` `aria-label`; None is omitted."""
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
    """Its name in the table of contents; empty: the title."""


def document(title: str, lead: str | Html, sections: Sequence[Section], *, footer: str = "") -> str:
    """Write a whole page with its table of contents.

    Args:
        title: heading and window title.
        lead: a sentence under the heading.
        sections: the parts of the page.
        footer: how the page was made.

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
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
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
class TableCell:
    """A table cell with a tone, a fill or a tooltip."""

    text: object
    tone: str = ""
    """good, bad or quiet."""
    heat: float | None = None
    """Strength of the fill, 0..1; None: not filled."""
    color: int = 0
    """Of the fill: a slot of the palette."""
    title: str | None = None
    """The tooltip."""


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
        heads: names of the columns; the first column stays in place when the others scroll.
        rows: cells: `TableCell`, `Html` or text; format numbers as text.
        caption: what the table shows.
        text: whether all columns are texts, aligned left and wrapped, rather than numbers.
        words: indices of the columns that are texts.
        marked: indices of the highlighted rows.
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
    if not isinstance(value, TableCell):
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
    """One headline number."""

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


def figure(data: bytes, alt: str, caption: str | Html = "") -> Html:
    """Embed an image in the page; a click enlarges it.

    Args:
        data: a JPEG, WebP or PNG file.
        alt: text alternative.
        caption: text under the image.

    Raises:
        ValueError: the file has another format.
    """
    kind = next((name for start, name in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("an image of a page must be a JPEG, WebP or PNG file")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = Html(f'<img src="{source}" alt="{html.escape(alt)}">')
    return tag("figure", image, *([tag("figcaption", caption)] if caption else []), class_="shot")


def gallery(figures: Iterable[Html], *, group: int = 1) -> Html:
    """Put figures side by side, as many as fit; figures come in groups of `group` that stay in one row."""
    if group == 1:
        return tag("div", *figures, class_="shots")
    style = f"--wide:{4 if group == 2 else group};--narrow:{min(2, group)}"
    return tag("div", *figures, class_="shots beside", style=style)


def grid(*parts: Html) -> Html:
    """Put parts side by side where they fit, else one below the other."""
    return tag("div", *parts, class_="grid")


def card(*parts: Html) -> Html:
    """Put a frame around parts."""
    return tag("div", *parts, class_="card")


def paragraph(text: object) -> Html:
    """Write a paragraph."""
    return tag("p", text, class_="about")


def missing(text: str) -> Html:
    """Say what cannot be shown and why."""
    return tag("div", text, class_="missing")


def alert(text: object) -> Html:
    """Highlight a warning."""
    return tag("div", text, class_="alert", role="note")


def code(text: str, *, wrap: bool = False) -> Html:
    """Write a text with its line breaks."""
    return tag("pre", tag("code", text), class_="wrap" if wrap else None)


def details(summary: str, *parts: Html) -> Html:
    """Hide parts behind a line that opens them."""
    return tag("details", tag("summary", summary), *parts)


def swatch(color: int) -> Html:
    """Draw a colour of the palette, as the key of a name."""
    return tag("span", class_="swatch", style=f"--c:var(--s{color % COLORS})")


def _file(name: str) -> str:
    return resources.files("msefpn.html").joinpath(name).read_text(encoding="utf-8")


def _identifier(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"


def _unique(names: Sequence[str]) -> list[str]:
    return [name if name not in names[:at] else f"{name}-{at}" for at, name in enumerate(names)]
