"""What the user sees: progress while training or detecting, and tables of numbers."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from msefpn.metrics.coco import NUMBERS, CocoEvaluation
from msefpn.plain import printable

_MEANING = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "area under 32 x 32 px",
    "APm": "area 32 x 32 to 96 x 96 px",
    "APl": "area over 96 x 96 px",
    "AR1": "1 detection per image",
    "AR10": "10 detections per image",
    "AR100": "100 detections per image",
    "ARs": "area under 32 x 32 px",
    "ARm": "area 32 x 32 to 96 x 96 px",
    "ARl": "area over 96 x 96 px",
}

_MINUTE = 60.0


_told_as: dict[str, str] = {}
"""Paths in what is printed -> what is printed instead."""


def say(*lines: str) -> None:
    """Print lines without markup; control characters in them are written out, see `msefpn.plain`."""
    for line in lines:
        print(printable(told_as(line)), flush=True)


def say_end(line: str) -> None:
    """Print to the standard error what ends the process, on a line of its own."""
    print(f"\n{printable(line)}", file=sys.stderr, flush=True)


def told_as(text: str) -> str:
    """A text as it is told inside `telling_as`."""
    for own, other in _told_as.items():
        text = text.replace(str(Path(own).absolute()), other).replace(own, other)
    return text


@contextlib.contextmanager
def telling_as(own: str, other: str) -> Iterator[None]:
    """Tell a path as something else, such as the address that it is a copy of, while the body runs."""
    _told_as[own] = other
    try:
        yield
    finally:
        del _told_as[own]


def show_numbers(numbers: Mapping[str, Any]) -> None:
    """Print the 12 numbers and AP per class, of boxes and masks, in percent.

    A dash stands where there was nothing to find.
    """
    evaluation = CocoEvaluation.from_json(numbers)
    box, mask = evaluation.box, evaluation.mask
    kinds = {"value": box} if mask is None else {"box": box, "mask": mask}
    table = Table("percent", *kinds, "of")
    for name in NUMBERS:
        table.add_row(name, *(percent(scores.numbers[name]) for scores in kinds.values()), _MEANING[name])
    per_class = Table("class", *["AP", "mask AP"][: len(kinds)])
    for name in box.per_class:
        per_class.add_row(printable(name), *(percent(scores.per_class[name]) for scores in kinds.values()))
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(per_class)


def show_dropped(count: int) -> None:
    """Say how many candidates were not looked at, if any; see `Detections.num_dropped`."""
    if count:
        say(f"{count} candidates over the score threshold were dropped before NMS")


def show_costs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what each row costs; parts that a row has not are left empty."""
    parts = list(dict.fromkeys(part for row in rows for part in row["macs"] if part != "all"))
    heads = ["row", "params M", "trained M", *parts, "GMAC", "time", "peak MB"]
    columns = (Column(head, no_wrap=True) for head in heads)
    table = Table(*columns, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        macs = [f"{row['macs'][part] / 1e9:.1f}" if part in row["macs"] else "" for part in [*parts, "all"]]
        millions = [f"{row[key] / 1e6:.2f}" for key in ("parameters", "trainable")]
        memory = f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] else ""
        table.add_row(printable(row["row"]), *millions, *macs, f"{row['ratio']:.2f}", memory)
    _print_wide(table)


def show_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of texts."""
    table = Table(*heads, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*map(printable, row))
    _print_wide(table)


def _print_wide(table: Table) -> None:
    """Print a table; whole lines where the output is not a terminal."""
    width = None if Console().is_terminal else 200
    Console(markup=False, highlight=False, width=width).print(table)


def percent(value: float | None) -> str:
    """A share 0..1, such as AP, as people read it: percent; a dash for None and for -1 (no objects)."""
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"


def duration(seconds: float) -> str:
    """Write seconds as 1:23 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Speed(Protocol):
    """How fast a training is."""

    @property
    def images_per_second(self) -> float:
        """Of this epoch."""

    @property
    def left(self) -> float:
        """Seconds to the end of the run."""


class _Speed(ProgressColumn):
    """Units per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        """Return the speed; nothing before there is one."""
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.unit}/s")


class Bar:
    """A progress bar over images, or another unit; where the output is not a terminal, a line a minute.

    Args:
        text: what is done.
        total: number of units; None: unknown.
        unit: their name.
    """

    def __init__(self, text: str, total: int | None, unit: str = "images") -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit},"),
            _Speed(unit),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, transient=True, disable=not Console().is_terminal)
        self.task = self.progress.add_task(text, total=total)
        self.text, self.total, self.unit = text, total, unit
        self.began = self.told = time.monotonic()
        self.count = 0

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def seen(self, count: int) -> None:
        """Move on by some units."""
        self.progress.advance(self.task, count)
        self.count += count
        now = time.monotonic()
        if self.progress.disable and now - self.told >= _MINUTE:
            self.told = now
            speed = max(self.count / (now - self.began), 1e-9)
            of, left = "", ""
            if self.total is not None:
                of, left = f"/{self.total}", f", left {duration((self.total - self.count) / speed)}"
            say(f"{self.text} {self.count}{of} {self.unit}, {speed:.1f} {self.unit}/s{left}")


class _TwoLines(Progress):
    """A bar with a line of text under it, cut at the terminal's width."""

    text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield from super().get_renderables()
        yield Text(self.text, no_wrap=True, overflow="ellipsis")


class TrainingProgress:
    """A bar with losses, learning rate, speed and time left on a terminal; a line per epoch everywhere.

    Outside a terminal, a line once a minute.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.told = time.monotonic()
        self.progress = _TwoLines(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            transient=True,
            disable=not Console().is_terminal,
        )
        self.task: TaskID | None = None

    def start(self, text: str, batches: int, done: int = 0) -> None:
        """Begin a part: an epoch's training or its evaluation, where `done` batches of it are done."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.progress.start()
        self.task = self.progress.add_task(text, total=batches, completed=done, speed="")

    def step(self, values: Mapping[str, float], clock: Speed) -> None:
        """Show one batch: its losses and the learning rate."""
        text = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
        speed = f"{clock.images_per_second:.1f} images/s  left {duration(clock.left)}"
        self.progress.text = text
        self._advance(f"loss {values['loss']:.4g}  {speed}", speed=speed)

    def evaluated(self, images: int) -> None:
        """Show that one more batch, of `images`, is evaluated."""
        self._advance("")

    def _advance(self, text: str, **shown: Any) -> None:
        """Move on by a batch; outside a terminal tell how far it is, where a minute has passed."""
        if self.task is None:
            return
        self.progress.update(self.task, advance=1, **shown)
        if self.progress.disable and time.monotonic() - self.told >= _MINUTE:
            self.told = time.monotonic()
            (task,) = self.progress.tasks
            say(f"{task.description}  batch {task.completed:.0f}/{task.total:.0f}  {text}".rstrip())

    def end_epoch(
        self, epoch: int, values: Mapping[str, float], numbers: Mapping[str, Any], clock: Speed
    ) -> None:
        """Print the line of an epoch."""
        self.progress.stop()
        self.told = time.monotonic()
        masks = f"mask AP {percent(numbers['mask']['AP'])}  " if "mask" in numbers else ""
        say(
            f"epoch {epoch}/{self.epochs}  loss {values['loss']:.4g}  AP {percent(numbers['AP'])}  "
            f"AP50 {percent(numbers['AP50'])}  {masks}lr {values['lr']:.3g}  "
            f"{clock.images_per_second:.1f} images/s  left {duration(clock.left)}"
        )

    def close(self) -> None:
        """Give the terminal back."""
        self.progress.stop()
