"""The semantic gap of each row of a grid beside its gain in AP: python -m benchmarks.gap GRID IMAGES

GRID is a folder of `msefpn ablate`, IMAGES a folder of photographs. The similarity of neighbouring levels
after the neck (P) and its rise from the neck's input (P - C), by linear CKA as of `msefpn explain`, is the
mean over pairs of levels and over the seeds' last weights. Last, over all rows but baselines, the rank
correlation of a row's gain in AP and its change of P.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import msefpn
from benchmarks.common import table
from msefpn.inference.sources import find_images
from msefpn.metrics.paired import mean_and_spread


def similarity(run: Path, images: list[Path]) -> tuple[float, float]:
    """Mean over the pairs of levels of a run: CKA after the neck, and its rise from C."""
    weights = run / "last.safetensors"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        page = Path(folder) / "page.html"
        found: dict[str, Any] = msefpn.explain(weights, images[0], images=images, device="cpu", out=page)
    mean = next(row for row in found["similarity"]["runs"] if row["levels"] == "mean")
    return mean["stages"]["P"]["value"], mean["change"]["value"]


def main(words: Sequence[str] | None = None) -> None:
    """Print the table and the correlation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", type=Path)
    parser.add_argument("images", type=Path)
    args = parser.parse_args(words)
    images = find_images(args.images)
    lines: list[list[str]] = []
    first: dict[int, float] = {}
    moves: list[tuple[float, float]] = []
    for row in json.loads((args.grid / "results.json").read_text())["rows"]:
        folder = args.grid / row["row"] / f"epochs-{row['epochs']}"
        found = [similarity(folder / f"seed-{trial['seed']}", images) for trial in row["trials"]]
        (after, spread), (rise, _) = (mean_and_spread(values) for values in zip(*found, strict=True))
        gain, change = 0.0, after - first.setdefault(row["epochs"], after)
        if not row["baseline"]:
            gain = row["difference"]["mean"]
            moves.append((gain, change))
        cells = [f"{after:.2f}" + ("" if spread is None else f" ± {spread:.2f}"), f"{rise:+.2f}"]
        lines.append([row["row"], str(row["epochs"]), f"{100 * gain:+.1f}", *cells, f"{change:+.2f}"])
    table(["row", "epochs", "AP gained", "P", "P - C", "change of P"], lines)
    gains, changes = (np.argsort(np.argsort(values)) for values in zip(*moves, strict=True))
    print(f"rank correlation over {len(moves)} rows: {np.corrcoef(gains, changes)[0, 1]:+.2f}")


if __name__ == "__main__":
    main()
