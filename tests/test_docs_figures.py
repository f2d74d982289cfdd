"""The diagrams of the pages are those that their code draws."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

from tests import ROOT

DOCS = ROOT / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def drawing(path: Path) -> list[tuple[str, str]]:
    """Give the outline and style of each box and line, in order; letters differ between fonts."""
    paths = ElementTree.parse(path).getroot().iter(f"{SVG}path")
    return [(item.get("d", ""), item.get("style", "")) for item in paths if item.get("style")]


def test_diagram_is_the_one_that_its_code_draws(tmp_path: Path) -> None:
    figures = runpy.run_path(str(DOCS / "figures.py"))
    figures["mse_fpn"]().save(tmp_path / "mse-fpn.svg")
    drawn, kept = (drawing(folder / "mse-fpn.svg") for folder in (tmp_path, DOCS / "images"))
    assert len(kept) > 100
    assert drawn == kept
    text = (DOCS / "images" / "mse-fpn.svg").read_text(encoding="utf-8")
    assert all(colour in text for colour in figures["FILL"].values())
