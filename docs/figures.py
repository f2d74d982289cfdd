"""Draws the diagrams of the pages: `python docs/figures.py` writes docs/images/mse-fpn.svg.

The background is transparent and what lies on it mid-grey, so that a diagram suits a light and a dark page.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

IMAGES = Path(__file__).with_name("images")
LINE = "#84848c"
INK = "#17171a"
FILL = {
    "map": "#d9d9de",
    "SEM": "#f6c28b",
    "SIM": "#9cc9f5",
    "GCG": "#a9dfc0",
    "conv": "#d7c6f2",
}
"""Light enough for dark text, whatever the page."""
Point = tuple[float, float]


class Canvas:
    """Boxes and arrows in inches, the origin at the lower left."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def box(
        self, at: Point, text: str, kind: str, *, wide: float = 0.9, tall: float = 0.42, size: int = 11
    ) -> None:
        """Draw a box around its centre."""
        corner = (at[0] - wide / 2, at[1] - tall / 2)
        style = "round,pad=0,rounding_size=0.08"
        self.axes.add_patch(
            FancyBboxPatch(corner, wide, tall, boxstyle=style, fc=FILL[kind], ec="none", zorder=2)
        )
        self.axes.text(*at, text, ha="center", va="center", color=INK, fontsize=size, zorder=3)

    def node(self, at: Point, text: str) -> None:
        """Draw a small circle with an operation."""
        self.axes.add_patch(Circle(at, 0.13, fc=FILL["map"], ec="none", zorder=2))
        self.axes.text(*at, text, ha="center", va="center", color=INK, fontsize=11, zorder=3)

    def arrow(self, *points: Point) -> None:
        """Draw a line through points with a head at its end."""
        for start, end in pairwise(points[:-1]):
            self.axes.plot(
                *zip(start, end, strict=True), color=LINE, lw=1.4, solid_capstyle="round", zorder=1
            )
        head = FancyArrowPatch(
            *points[-2:],
            arrowstyle="-|>,head_length=5,head_width=2.6",
            color=LINE,
            lw=1.4,
            shrinkA=0,
            shrinkB=0,
            zorder=1,
        )
        self.axes.add_patch(head)

    def note(
        self, at: Point, text: str, *, size: float = 9.5, align: str = "center", bold: bool = False
    ) -> None:
        """Write on the page's own background."""
        weight = "bold" if bold else "normal"
        self.axes.text(
            *at, text, ha=align, va="center", color=LINE, fontsize=size, fontweight=weight, zorder=3
        )

    def save(self, path: Path) -> None:
        """Write an SVG file that is the same each time."""
        with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "msefpn"}):
            self.figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def mse_fpn() -> Canvas:
    """How the modules are wired, and what each does."""
    canvas = Canvas(10.4, 8.3)
    _wiring(canvas)
    _sem(canvas, 0.2, 0.1)
    _sim(canvas, 4.35, 0.1)
    _gcg(canvas, 7.65, 0.1)
    return canvas


def _wiring(canvas: Canvas) -> None:
    levels = {5: 7.2, 4: 6.3, 3: 5.4, 2: 4.5}
    for x, text in (
        (0.75, "backbone"),
        (2.7, "semantics"),
        (5.0, "injection"),
        (7.3, "guided top-down path"),
        (9.7, "pyramid"),
    ):
        canvas.note((x, 8.0), text)
    for level, y in levels.items():
        canvas.box((0.75, y), f"$C_{level}$", "map")
        canvas.note((0.75, y - 0.32), f"1/{2**level}", size=8)
        canvas.box((5.0, y), f"$\\mathrm{{SIM}}_{level}$", "SIM", wide=1.0)
        canvas.arrow((1.2, y - 0.1), (4.5, y - 0.1))
        canvas.box((7.6, y), f"$\\mathrm{{GCG}}_{level}$", "GCG", wide=1.0)
        canvas.box((8.75, y), "3x3", "conv", wide=0.55)
        canvas.box((9.7, y), f"$P_{level}$", "map", wide=0.8)
        canvas.arrow((8.1, y), (8.475, y))
        canvas.arrow((9.025, y), (9.3, y))
        canvas.note((5.72, y + 0.14), f"$F_{level}$")
        if level == 5:
            canvas.arrow((5.5, y), (7.1, y))
            continue
        canvas.node((6.5, y), "+")
        canvas.arrow((5.5, y), (6.37, y))
        canvas.arrow((6.63, y), (7.1, y))
        above = levels[level + 1]
        canvas.arrow((8.28, above), (8.28, y + 0.45), (6.5, y + 0.45), (6.5, y + 0.13))
        canvas.note((7.4, y + 0.57), "2x up", size=8)
    canvas.box((2.7, 7.62), "SEM", "SEM", wide=1.0)
    for level, x in ((5, 1.45), (4, 1.65), (3, 1.85)):
        y = levels[level]
        top = 7.62 + 0.12 * (level - 4)
        canvas.arrow((1.2, y + 0.1), (x, y + 0.1), (x, top), (2.2, top))
    canvas.arrow((3.2, 7.62), (4.1, 7.62), (4.1, levels[2] + 0.1), (4.5, levels[2] + 0.1))
    for level in (5, 4, 3):
        canvas.arrow((4.1, levels[level] + 0.1), (4.5, levels[level] + 0.1))
    canvas.note((3.6, 7.77), "$G$, 1/64")


def _sem(canvas: Canvas, x: float, y: float) -> None:
    canvas.note((x, y + 3.62), "SEM", size=11, align="left", bold=True)
    canvas.note((x + 0.5, y + 3.62), "gathers semantics, once", align="left")
    canvas.box((x + 1.8, y + 3.15), "average pool, concatenate", "SEM", wide=2.3, size=9)
    canvas.note((x + 3.15, y + 3.15), "$M$", size=10.5)
    canvas.box((x + 0.75, y + 2.4), "$Q^T K$, norm", "SEM", wide=1.3, size=9)
    canvas.box((x + 0.75, y + 1.75), "mean, sigmoid", "SEM", wide=1.3, size=9)
    canvas.box((x + 1.95, y + 2.4), "$V$", "SEM", wide=0.6, size=9)
    canvas.box((x + 3.05, y + 2.4), "mean, 2 layers", "SEM", wide=1.3, size=9)
    canvas.box((x + 3.05, y + 1.75), "sigmoid", "SEM", wide=1.3, size=9)
    for goal in (0.75, 1.95, 3.05):
        canvas.arrow((x + 1.8, y + 2.94), (x + 1.8, y + 2.8), (x + goal, y + 2.8), (x + goal, y + 2.61))
    canvas.arrow((x + 0.75, y + 2.19), (x + 0.75, y + 1.96))
    canvas.arrow((x + 3.05, y + 2.19), (x + 3.05, y + 1.96))
    canvas.node((x + 1.35, y + 1.1), "×")
    canvas.node((x + 2.45, y + 1.1), "×")
    canvas.node((x + 1.9, y + 0.6), "+")
    canvas.arrow((x + 0.75, y + 1.54), (x + 0.75, y + 1.1), (x + 1.22, y + 1.1))
    canvas.note((x + 0.92, y + 1.24), "$a$")
    canvas.arrow((x + 1.95, y + 2.19), (x + 1.95, y + 1.4), (x + 1.35, y + 1.4), (x + 1.35, y + 1.23))
    canvas.arrow((x + 3.05, y + 1.54), (x + 3.05, y + 1.1), (x + 2.58, y + 1.1))
    canvas.note((x + 2.86, y + 1.24), "$m$")
    canvas.arrow((x + 2.32, y + 2.8), (x + 2.32, y + 1.4), (x + 2.45, y + 1.4), (x + 2.45, y + 1.23))
    canvas.arrow((x + 1.35, y + 0.97), (x + 1.35, y + 0.6), (x + 1.77, y + 0.6))
    canvas.arrow((x + 2.45, y + 0.97), (x + 2.45, y + 0.6), (x + 2.03, y + 0.6))
    canvas.arrow((x + 1.9, y + 0.47), (x + 1.9, y + 0.22))
    canvas.note((x + 1.9, y + 0.1), "$G = a\\,V + m\\,M$", size=10.5)


def _sim(canvas: Canvas, x: float, y: float) -> None:
    canvas.note((x, y + 3.62), "SIM", size=11, align="left", bold=True)
    canvas.note((x + 0.45, y + 3.62), "injects them, per level", align="left")
    canvas.note((x + 0.45, y + 3.15), "$C_i$", size=10.5)
    canvas.note((x + 1.95, y + 3.15), "$G$", size=10.5)
    canvas.box((x + 0.45, y + 2.4), "1x1", "SIM", wide=0.6, size=9)
    canvas.box((x + 1.4, y + 2.4), "1x1, norm", "SIM", wide=0.95, size=9)
    canvas.box((x + 2.5, y + 2.4), "1x1, norm", "SIM", wide=0.95, size=9)
    canvas.box((x + 1.4, y + 1.75), "sigmoid, up", "SIM", wide=0.95, size=9)
    canvas.box((x + 2.5, y + 1.75), "up", "SIM", wide=0.95, size=9)
    canvas.arrow((x + 0.45, y + 3.02), (x + 0.45, y + 2.61))
    for goal in (1.4, 2.5):
        canvas.arrow((x + 1.95, y + 3.02), (x + 1.95, y + 2.8), (x + goal, y + 2.8), (x + goal, y + 2.61))
        canvas.arrow((x + goal, y + 2.19), (x + goal, y + 1.96))
    canvas.node((x + 0.45, y + 1.1), "×")
    canvas.arrow((x + 0.45, y + 2.19), (x + 0.45, y + 1.23))
    canvas.arrow((x + 1.4, y + 1.54), (x + 1.4, y + 1.1), (x + 0.58, y + 1.1))
    canvas.node((x + 1.45, y + 0.6), "+")
    canvas.arrow((x + 0.45, y + 0.97), (x + 0.45, y + 0.6), (x + 1.32, y + 0.6))
    canvas.arrow((x + 2.5, y + 1.54), (x + 2.5, y + 0.6), (x + 1.58, y + 0.6))
    canvas.arrow((x + 1.45, y + 0.47), (x + 1.45, y + 0.22))
    canvas.note((x + 1.45, y + 0.1), "$F_i$", size=10.5)


def _gcg(canvas: Canvas, x: float, y: float) -> None:
    canvas.note((x, y + 3.62), "GCG", size=11, align="left", bold=True)
    canvas.note((x + 0.5, y + 3.62), "gates, per level", align="left")
    canvas.note((x + 1.3, y + 3.15), "$X$", size=10.5)
    canvas.box((x + 0.6, y + 2.4), "row means, FC", "GCG", wide=1.15, size=9)
    canvas.box((x + 1.95, y + 2.4), "column means, FC", "GCG", wide=1.35, size=9)
    canvas.box((x + 1.3, y + 1.75), "outer product, sigmoid", "GCG", wide=1.7, size=9)
    for goal in (0.6, 1.95):
        canvas.arrow((x + 1.3, y + 3.02), (x + 1.3, y + 2.8), (x + goal, y + 2.8), (x + goal, y + 2.61))
        canvas.arrow((x + goal, y + 2.19), (x + goal, y + 1.96))
    canvas.node((x + 1.3, y + 1.1), "×")
    canvas.arrow((x + 1.3, y + 1.54), (x + 1.3, y + 1.23))
    canvas.arrow((x + 1.3, y + 2.8), (x + 2.72, y + 2.8), (x + 2.72, y + 1.1), (x + 1.43, y + 1.1))
    canvas.arrow((x + 1.3, y + 0.97), (x + 1.3, y + 0.22))
    canvas.note((x + 1.3, y + 0.1), "$T_i$", size=10.5)


if __name__ == "__main__":
    mse_fpn().save(IMAGES / "mse-fpn.svg")
