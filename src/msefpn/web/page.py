"""The page: a picture on the left with what to show of it, the boxes on the right."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import gradio as gr

from msefpn.errors import UserError
from msefpn.web.panel import WELCOME, notice, panels, title
from msefpn.web.picture import Limits, read_picture
from msefpn.web.visit import Shown, Visit, all_classes, visit

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
KEPT = 1800
"""Seconds for which a visitor's last picture is kept."""
WAITING = 64
"""Visitors' requests that wait at the most; who comes then is told so."""


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return (files("msefpn.web") / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Gradio's plain theme in the system's own fonts: none is loaded from anywhere."""
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=SYSTEM, font_mono=MONO
    )


def build_page(runs: Sequence[Shown], limits: Limits) -> gr.Blocks:
    """Lay the page out and connect it.

    Args:
        runs: one, or two to be compared.
        limits: of the pictures.
    """

    def look(event: gr.EventData, score: float, wanted: list[str]) -> tuple[Any, Any, str]:
        try:
            seen = visit(runs, read_picture(event._data, limits))
        except UserError as error:
            return gr.skip(), gr.skip(), notice(str(error))
        return seen, panels(seen, runs, score, wanted), ""

    def redraw(seen: Visit | None, score: float, wanted: list[str]) -> Any:
        return gr.skip() if seen is None else panels(seen, runs, score, wanted)

    page: gr.Blocks = gr.Blocks(title="msefpn", analytics_enabled=False)
    with page:
        seen = gr.State(None, time_to_live=KEPT)
        gr.HTML(title(runs), apply_default_css=False)
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=280, elem_id="controls"):
                drop = gr.HTML(
                    html_template=asset("drop.html"),
                    js_on_load=asset("drop.js"),
                    apply_default_css=False,
                    most=limits.bytes,
                    elem_id="drop",
                )
                told = gr.HTML(elem_id="told", apply_default_css=False)
                score = gr.Slider(0.0, 1.0, 0.3, step=0.01, label="Score from", elem_id="score")
                wanted = gr.Dropdown(
                    all_classes(runs), value=[], multiselect=True, label="Classes", info="None chosen: all"
                )
            with gr.Column(scale=5, min_width=320):
                shown = gr.HTML(WELCOME, elem_id="shown", apply_default_css=False)
        drop.upload(look, [score, wanted], [seen, shown, told], concurrency_limit=1, api_visibility="private")
        choice = [seen, score, wanted]
        for control in (score, wanted):
            control.input(
                redraw,
                choice,
                shown,
                trigger_mode="always_last",
                show_progress="hidden",
                concurrency_limit=4,
                api_visibility="private",
            )
    page.queue(max_size=WAITING)
    return page
