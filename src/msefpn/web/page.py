"""The layout of the demo page: upload and controls on the left, detections on the right."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import gradio as gr

from msefpn.errors import UserError
from msefpn.web.results import WELCOME, notice, result_panels, title
from msefpn.web.session import ServedRun, Session, all_classes, detect_all
from msefpn.web.upload import UploadLimits, read_upload

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
SESSION_SECONDS = 1800
"""Seconds for which a visitor's last image is kept."""
MAX_WAITING = 64
"""Most requests in the queue; further ones are refused."""


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return (files("msefpn.web") / name).read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Gradio's plain theme in system fonts: no font is loaded."""
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=SYSTEM_FONTS, font_mono=MONO_FONTS
    )


def build_page(runs: Sequence[ServedRun], limits: UploadLimits) -> gr.Blocks:
    """Lay out the page and connect its controls.

    Args:
        runs: one, or two to be compared.
        limits: of the uploads.
    """

    def detect(event: gr.EventData, score: float, wanted: list[str]) -> tuple[Any, Any, str]:
        try:
            session = detect_all(runs, read_upload(event._data, limits))
        except UserError as error:
            return gr.skip(), gr.skip(), notice(str(error))
        return session, result_panels(session, runs, score, wanted), ""

    def redraw(session: Session | None, score: float, wanted: list[str]) -> Any:
        return gr.skip() if session is None else result_panels(session, runs, score, wanted)

    page: gr.Blocks = gr.Blocks(title="msefpn", analytics_enabled=False)
    with page:
        session = gr.State(None, time_to_live=SESSION_SECONDS)
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
                score = gr.Slider(0.0, 1.0, 0.3, step=0.01, label="Minimum score", elem_id="score")
                wanted = gr.Dropdown(
                    all_classes(runs),
                    value=[],
                    multiselect=True,
                    label="Classes",
                    info="none selected: all",
                )
            with gr.Column(scale=5, min_width=320):
                shown = gr.HTML(WELCOME, elem_id="shown", apply_default_css=False)
        drop.upload(
            detect, [score, wanted], [session, shown, told], concurrency_limit=1, api_visibility="private"
        )
        choice = [session, score, wanted]
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
    page.queue(max_size=MAX_WAITING)
    return page
