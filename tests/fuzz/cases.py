"""Broken input from a seed, and a command for it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.data.test_conserved import MAKERS, Shot
from tests.fuzz.damage import damage

LABELS = ("check", "convert", "split")
OF_A_RUN = (*("evaluate", "predict", "report", "explain", "upgrade", "resume", "demo") * 20, "export")
TRAIN = ("--init", "none", "--size", "64", "--steps", "1", "--workers", "0", "--device", "cpu", "--seed", "0")
COST = ("--size", "64", "--classes", "2", "--rounds", "1", "--device", "cpu")
GRID = ("--init", "none", "--seeds", "1", "--rounds", "1", "--workers", "0", "--device", "cpu")
KINDS = (
    *(*MAKERS, *MAKERS, *MAKERS, "run", "run", "run", "weights", "weights", "recipe", "recipe", "picture"),
    *("picture", "grid", "config", "config", "checkpoint", "plugin"),
)


class Stock(NamedTuple):
    """What is right, to be copied and damaged."""

    data: Path
    """A COCO data set with splits, and `recipe.yaml` beside them."""
    run: Path
    """A run on it."""
    grid: Path
    """A grid of that recipe, with the run as its training."""
    configs: Path
    """A configuration of mmdetection, `faster_rcnn.py`, and its bases."""
    checkpoints: Path
    """Files of mmdetection, in both formats of torch."""
    plugin: Path
    """A plug-in, a file."""


class Trial(NamedTuple):
    """One command on broken input."""

    seed: int
    words: list[str]
    planted: int | None = None
    """Boxes of the set where all are still there; None: nobody knows."""
    uploads: tuple[Path, ...] = ()
    """What visitors of the page send."""


def prepare(seed: int, stock: Stock, folder: Path) -> Trial:
    """Make the broken input of a seed in an empty folder, and choose a command for it."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    if kind in MAKERS:
        return _labels(seed, rng, kind, folder)
    words, uploads = _MAKERS[kind](rng, stock, folder)
    return Trial(seed, words, uploads=uploads)


def _labels(seed: int, rng: random.Random, kind: str, folder: Path) -> Trial:
    """A set in one of the formats."""
    data, out, made = folder / "data", str(folder / "out"), _shots(rng)
    data.mkdir()
    MAKERS[kind](data, made)
    planted = sum(len(shot.boxes) for shot in made)
    if rng.random() < 0.06:
        (folder / "packed").mkdir()
        data = Path(shutil.make_archive(str(folder / "packed" / "set"), "zip", data))
        kept = damage(folder / "packed", rng) and data.is_file()
    else:
        kept = damage(data, rng)
    verb = rng.choice((*LABELS, "convert", "convert"))
    words = [verb, str(data), *([] if verb == "check" else ["--out", out])]
    if verb == "convert" and rng.random() < 0.5:
        words += ["--format", "yolo"]
    return Trial(seed, words, planted if kept and words[-1] == out and verb == "convert" else None)


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


Made = tuple[list[str], tuple[Path, ...]]
"""Words of a command, and uploads."""


def _recipe(rng: random.Random, stock: Stock, folder: Path) -> Made:
    recipe, out = folder / "recipe.yaml", folder / "out"
    shutil.copy(stock.data / "recipe.yaml", recipe)
    damage(folder, rng)
    verb = rng.choice(("train", "train", "cost", "ablate"))
    if verb == "train":
        return [*_training(stock.data, recipe, out), *_small_parts(recipe)], ()
    if verb == "cost":
        return ["cost", str(recipe), "fpn", *COST, "--recipe", str(recipe), "--out", f"{out}.json"], ()
    return ["ablate", str(recipe), "--data", str(stock.data), "--out", str(out), *GRID], ()


def _picture(rng: random.Random, stock: Stock, folder: Path) -> Made:
    data, out = folder / "data", folder / "out"
    shutil.copytree(stock.data, data)
    damage(data / rng.choice(("train", "val")), rng)
    verb = rng.choice(("train", "predict", "demo"))
    if verb == "train":
        return _training(data, stock.data / "recipe.yaml", out), ()
    if verb == "predict":
        return ["predict", str(stock.run), str(data / "val"), "--out", str(out)], ()
    uploads = tuple(path for path in sorted((data / "val").iterdir()) if path.is_file())
    return _demo(stock.run), uploads


def _run(rng: random.Random, stock: Stock, folder: Path) -> Made:
    run = folder / "run"
    shutil.copytree(stock.run, run)
    damage(run, rng)
    return _of_a_run(rng, run, stock, folder)


def _weights(rng: random.Random, stock: Stock, folder: Path) -> Made:
    """A run whose weights or state are damaged."""
    run = folder / "run"
    shutil.copytree(stock.run, run)
    for file in run.iterdir():
        if file.suffix not in (".safetensors", ".ckpt"):
            file.rename(folder / file.name)
    damage(run, rng)
    for file in folder.iterdir():
        if file != run:
            file.rename(run / file.name)
    return _of_a_run(rng, run, stock, folder)


def _grid(rng: random.Random, stock: Stock, folder: Path) -> Made:
    grid = folder / "grid"
    shutil.copytree(stock.grid, grid)
    damage(grid, rng)
    recipe = str(stock.data / "recipe.yaml")
    return ["ablate", recipe, "--data", str(stock.data), "--out", str(grid), "--epochs", "2", *GRID], ()


def _config(rng: random.Random, stock: Stock, folder: Path) -> Made:
    shutil.copytree(stock.configs, folder / "configs")
    damage(folder / "configs", rng)
    return ["import", str(folder / "configs" / "faster_rcnn.py"), "--out", str(folder / "out.yaml")], ()


def _checkpoint(rng: random.Random, stock: Stock, folder: Path) -> Made:
    (folder / "theirs").mkdir()
    file = rng.choice(sorted(stock.checkpoints.iterdir()))
    shutil.copy(file, folder / "theirs" / file.name)
    damage(folder / "theirs", rng)
    return ["import", str(folder / "theirs" / file.name), "--out", str(folder / "out.safetensors")], ()


def _plugin(rng: random.Random, stock: Stock, folder: Path) -> Made:
    shutil.copy(stock.plugin, folder / stock.plugin.name)
    damage(folder, rng)
    return [rng.choice(("models", "plugins")), "--plugin", str(folder / stock.plugin.name)], ()


_MAKERS: dict[str, Callable[[random.Random, Stock, Path], Made]] = {
    "recipe": _recipe,
    "picture": _picture,
    "run": _run,
    "weights": _weights,
    "grid": _grid,
    "config": _config,
    "checkpoint": _checkpoint,
    "plugin": _plugin,
}


def _small_parts(recipe: Path) -> list[str]:
    """Options for what a damaged recipe no longer names: the default detector takes over 1 GB to train."""
    lines = recipe.read_bytes().splitlines() if recipe.is_file() else []
    named = {line.split(b":")[0] for line in lines}
    small = {"detector": "retinanet", "neck": "fpn"}
    return [word for key, name in small.items() if key.encode() not in named for word in (f"--{key}", name)]


def _training(data: Path, recipe: Path, out: Path) -> list[str]:
    return ["train", "--data", str(data), "--recipe", str(recipe), "--out", str(out), *TRAIN]


def _demo(run: Path) -> list[str]:
    return ["demo", str(run), "--port", "0", "--device", "cpu"]


def _of_a_run(rng: random.Random, run: Path, stock: Stock, folder: Path) -> Made:
    picture, out = str(min((stock.data / "val").iterdir())), str(folder / "out")
    return {
        "evaluate": ["evaluate", str(run), "--workers", "0", "--out", out],
        "predict": ["predict", str(run), picture, "--out", out],
        "report": ["report", str(run), "--out", f"{out}.html"],
        "explain": ["explain", str(run), picture, "--out", f"{out}.html"],
        "export": ["export", str(run), "--format", "pt2", "--compare", "0", "--out", f"{out}.pt2"],
        "upgrade": ["upgrade", str(run), "--neck", "mse_fpn", "--out", f"{out}.safetensors"],
        "resume": ["train", "--resume", "--out", str(run), "--epochs", "4", "--workers", "0"],
        "demo": _demo(run),
    }[rng.choice(OF_A_RUN)], ()
