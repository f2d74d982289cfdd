"""Broken input from a seed, and what the command says of it."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from msefpn.cli import main
from tests.data.test_conserved import MAKERS, Shot
from tests.fuzz.damage import damage

SECONDS = 20
"""CPU time that a command may take."""
WAIT = 120
"""Seconds after which it waits for what never comes."""
MEMORY = 1 << 30
"""Bytes that it may take beyond what the process held."""
EXIT_CODES = (0, 1, 2)
LABELS = ("check", "convert", "split")
OF_A_RUN = (*("evaluate", "predict", "report", "explain", "upgrade", "resume") * 6, "export")
KINDS = (*MAKERS, *MAKERS, "recipe", "run", "run", "weights", "picture")
TRAIN = ("--init", "none", "--size", "64", "--steps", "1", "--workers", "0", "--device", "cpu", "--seed", "0")


class Stock(NamedTuple):
    """What is right, to be copied and damaged."""

    data: Path
    """A COCO data set with splits, and `recipe.yaml` beside them."""
    run: Path
    """A run on it."""


class Trial(NamedTuple):
    """One command on broken input."""

    seed: int
    words: list[str]
    planted: int | None
    """Boxes of the set where all are still there; None: nobody knows."""


class TookTooLongError(BaseException):
    """The command used up its time."""


def prepare(seed: int, stock: Stock, folder: Path) -> Trial:
    """Make the broken input of a seed in an empty folder, and choose a command for it."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    out = str(folder / "out")
    if kind in MAKERS:
        data, planted = folder / "data", 0
        data.mkdir()
        made = _shots(rng)
        MAKERS[kind](data, made)
        planted = sum(len(shot.boxes) for shot in made)
        kept = damage(data, rng)
        verb = rng.choice((*LABELS, "convert", "convert"))
        words = [verb, str(data), *([] if verb == "check" else ["--out", out])]
        if verb == "convert" and rng.random() < 0.5:
            words += ["--format", "yolo"]
        return Trial(seed, words, planted if kept and words[-1] == out and verb == "convert" else None)
    if kind == "recipe":
        recipe = folder / "recipe.yaml"
        shutil.copy(stock.data / "recipe.yaml", recipe)
        damage(folder, rng)
        return Trial(seed, _training(stock.data, recipe, out), None)
    if kind == "picture":
        data = folder / "data"
        shutil.copytree(stock.data, data)
        damage(data / rng.choice(("train", "val")), rng)
        if rng.random() < 0.5:
            return Trial(seed, _training(data, stock.data / "recipe.yaml", out), None)
        return Trial(seed, ["predict", str(stock.run), str(data / "val"), "--out", out], None)
    run = folder / "run"
    shutil.copytree(stock.run, run)
    if kind == "weights":
        for file in run.iterdir():
            if file.suffix not in (".safetensors", ".ckpt"):
                file.rename(folder / file.name)
        damage(run, rng)
        for file in folder.iterdir():
            if file != run:
                file.rename(run / file.name)
    else:
        damage(run, rng)
    return Trial(seed, _of_a_run(rng.choice(OF_A_RUN), run, stock, out), None)


def _shots(rng: random.Random) -> list[Shot]:
    """A few pictures with objects."""
    made = []
    for _ in range(rng.randint(1, 4)):
        width, height = 4 * rng.randint(5, 30), 4 * rng.randint(5, 30)
        boxes = []
        for _ in range(rng.randint(0, 3)):
            x, y = rng.randint(0, width - 8), rng.randint(0, height - 8)
            boxes.append((rng.randint(0, 1), (x, y, rng.randint(8, width - x), rng.randint(8, height - y))))
        ending = rng.choice((".jpg", ".png", ".bmp", ".gif"))
        made.append(Shot(ending, list(dict.fromkeys(boxes)), (width, height), 1.0, there=True))
    return made


def _training(data: Path, recipe: Path, out: str) -> list[str]:
    return ["train", "--data", str(data), "--recipe", str(recipe), "--out", out, *TRAIN]


def _of_a_run(verb: str, run: Path, stock: Stock, out: str) -> list[str]:
    picture = str(min((stock.data / "val").iterdir()))
    return {
        "evaluate": ["evaluate", str(run), "--workers", "0", "--out", out],
        "predict": ["predict", str(run), picture, "--out", out],
        "report": ["report", str(run), "--out", f"{out}.html"],
        "explain": ["explain", str(run), picture, "--out", f"{out}.html"],
        "export": ["export", str(run), "--format", "pt2", "--compare", "0", "--out", f"{out}.pt2"],
        "upgrade": ["upgrade", str(run), "--neck", "mse_fpn", "--out", f"{out}.safetensors"],
        "resume": ["train", "--resume", "--out", str(run), "--epochs", "4", "--workers", "0"],
    }[verb]


def fault_of(trial: Trial, folder: Path) -> str | None:
    """Run a trial; return what is wrong with how it ended, None where nothing is."""
    told, errors = io.StringIO(), io.StringIO()
    _forget_peak()
    before = _peak()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors), _limited():
            code = main(trial.words)
    except TookTooLongError:
        return f"took over {SECONDS} s of CPU, or waited over {WAIT} s"
    except SystemExit as end:  # argparse's
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        return traceback.format_exc()
    if code == 130:
        raise KeyboardInterrupt
    if _peak() - before > MEMORY:
        return f"took {(_peak() - before) / 2**20:.0f} MB"
    said = [line for line in errors.getvalue().splitlines() if not line.startswith("warning: ")]
    if code not in EXIT_CODES or "Traceback" in errors.getvalue():
        return f"exit code {code}: {errors.getvalue()}"
    reported = trial.words[0] == "check" and not said  # its report names the faults
    if code == 2 and not reported and (len(said) != 1 or not said[0].startswith("error: ")):
        return f"not one line: {said}"
    if code == 0 and trial.planted is not None:
        return _unaccounted(trial, folder, told.getvalue())
    return None


def _unaccounted(trial: Trial, folder: Path, told: str) -> str | None:
    """What is wrong where a converted set has other boxes than the source, and nothing was said."""
    written = sum(
        len(json.loads(file.read_text(encoding="utf-8"))["annotations"])
        for file in (folder / "out").glob("*.json")
    )
    named = any(word in told for word in ("skipped", "dropped", "ignored", "left out", "removed"))
    if written == trial.planted or named:
        return None
    return f"{written} of {trial.planted} boxes were written without a word: {told}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TookTooLongError after `SECONDS` of CPU time, or `WAIT` of waiting."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TookTooLongError

    kept = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in kept.items():
            signal.signal(number, handler)


def _forget_peak() -> None:
    """Let the peak of this process's memory begin anew; Linux only."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> int:
    """Peak resident memory in bytes since it was forgotten."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
