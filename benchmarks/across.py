"""Each row's gain in AP over several settings: python -m benchmarks.across GRID GRID ...

A GRID is a folder of `msefpn ablate`: one data set and one backbone. A row counts that
all of them have, at each one's smallest budget. Its gain in a setting is the mean of the pairs of seeds; the
last column is the mean over the settings with Student's 95 % interval, settings as the units, corrected for
the number of rows by Holm's method.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import table
from msefpn.ablation.tables import difference_text
from msefpn.metrics.paired import paired_differences


def gains(grid: Path) -> dict[str, tuple[float, int]]:
    """The gain over the baseline of each row of a grid's smallest budget, and the number of its pairs."""
    rows = json.loads((grid / "results.json").read_text())["rows"]
    least = min(row["epochs"] for row in rows)
    return {
        row["row"]: (row["difference"]["mean"], row["difference"]["pairs"])
        for row in rows
        if row["epochs"] == least and "difference" in row
    }


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grids", type=Path, nargs="+")
    args = parser.parse_args(words)
    found = [gains(grid) for grid in args.grids]
    names = [name for name in found[0] if all(name in grid for grid in found)]
    if len(found) < 2 or not names:
        parser.error("give two grids or more that have a row, besides the baseline, in common")
    values = [[grid[name][0] for grid in found] for name in names]
    lines = []
    over = paired_differences([(own, [0.0] * len(own)) for own in values])
    for name, own, gain in zip(names, values, over, strict=True):
        cells = [f"{100 * x:+.1f} ({grid[name][1]})" for x, grid in zip(own, found, strict=True)]
        lines.append([name, *cells, difference_text(gain.mean, gain.low, gain.high)])
    table(["row", *(f"{grid} (seeds)" for grid in args.grids), "over settings"], lines)


if __name__ == "__main__":
    main()
