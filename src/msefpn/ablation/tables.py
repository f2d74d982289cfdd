"""The tables and the plot of a grid's results."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msefpn.ablation.worker import AGAIN
from msefpn.errors import UserError, missing_extra
from msefpn.plain import CsvRows
from msefpn.runs.console import say
from msefpn.writing import replacing_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = "results.json"
Results = dict[str, Any]
ResultRow = dict[str, Any]

NOTE = (
    "AP and differences in percent, of the weights after the last epoch; ± standard deviation over seeds; "
    "difference to the baseline of the same epochs, paired by seed, with Student's 95 % interval, corrected "
    "for the number of rows by Holm's method (without any true difference, one budget in twenty has an "
    "interval that excludes zero); time: ratio of prediction times; "
    "published: AP, and gain over FPN, on COCO in a recipe's own setting, for a neck with ResNet-50, 1x"
)


def verdict(row: ResultRow) -> str:
    """The conclusion from the paired difference."""
    if "difference" not in row:
        return "baseline" if row["baseline"] else ""
    low, high = row["difference"]["low"], row["difference"]["high"]
    if low is None:
        return "one seed: no interval"
    if low <= 0 <= high:
        return "no difference seen"
    return "better" if low > 0 else "worse"


def table_cells(results: Results) -> tuple[list[str], list[list[str]]]:
    """Column heads and cells, as text."""
    several = len({row["epochs"] for row in results["rows"]}) > 1
    heads = ["row", *["epochs"] * several, "AP", "AP50", "difference", "verdict"]
    heads += ["params M", "GMAC", "time", "published"]
    lines = []
    for row in results["rows"]:
        budget = [str(row["epochs"])] * several
        lines.append([row["row"], *budget, *_accuracy(row), verdict(row), *_cost(row), _published(row)])
    return heads, lines


def _accuracy(row: ResultRow) -> list[str]:
    """AP with its spread, AP50 and the difference with its interval."""
    if "mean" not in row:
        return ["failed", "", ""]
    missing = sum("failed" in trial for trial in row["trials"])
    spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
    note = f" ({missing} of {len(row['trials'])} failed)" if missing else ""
    found = [f"{100 * row['mean']:.1f}{spread}{note}", f"{100 * row['mean50']:.1f}"]
    if "difference" not in row:
        return [*found, ""]
    return [*found, difference_text(*(row["difference"][key] for key in ("mean", "low", "high")))]


def difference_text(mean: float, low: float | None, high: float | None) -> str:
    """A difference in AP and its interval, in percent."""
    interval = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * mean:+.1f}{interval}"


def _cost(row: ResultRow) -> list[str]:
    macs = row["macs"]["all"] / 1e9
    return [
        f"{row['parameters'] / 1e6:.2f}",
        f"{macs:.2f}" if macs < 10 else f"{macs:.1f}",
        f"{row['ratio']:.2f}",
    ]


def _published(row: ResultRow) -> str:
    """Published AP and gain over FPN, where known."""
    known = row["published"] or {}
    gain = known.get("gain")
    parts = [f"{100 * known['AP']:.1f}"] if known.get("AP") is not None else []
    return " ".join([*parts, f"({100 * gain:+.1f})"]) if gain else " ".join(parts)


def markdown(results: Results) -> str:
    """The table, its setting, the failures and each row's command."""
    heads, lines = table_cells(results)
    grid = [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *lines]]
    failed = [f"- {name}: {why}" for name, why in failures(results)]
    commands = [row["command"] for row in results["rows"]]
    return "\n".join(
        [
            *grid,
            "",
            f"{NOTE}.",
            "",
            f"{results['setting']}.",
            "",
            *(["Failed:", "", *failed, ""] if failed else []),
            "The command of each row, with seed 0; the other seeds likewise:",
            "",
            "```sh",
            *commands,
            "```",
            "",
        ]
    )


def comma_separated(results: Results) -> str:
    """The numbers as csv, unrounded, with the command of each row; AP from 0 to 1, empty if missing."""
    lines = []
    for row in results["rows"]:
        numbers = {key: row.get(key) for key in ("row", "epochs", "mean", "spread", "mean50")}
        numbers |= {"seeds": sum("AP" in trial for trial in row["trials"]), "verdict": verdict(row)}
        step = row.get("difference", {})
        numbers |= {"difference": step.get("mean"), "low": step.get("low"), "high": step.get("high")}
        numbers |= {"parameters": row["parameters"], "macs": row["macs"]["all"], "time_ratio": row["ratio"]}
        known = row["published"] or {}
        numbers |= {"published_AP": known.get("AP"), "published_gain": known.get("gain")}
        lines.append(numbers | {"command": row["command"]})
    text = io.StringIO()
    writer = CsvRows(text, "\n")
    writer.add(lines[0])
    for line in lines:
        writer.add(line.values())
    return text.getvalue()


def latex(results: Results) -> str:
    """The table as a LaTeX tabular (package booktabs)."""
    heads, lines = table_cells(results)
    rows = [" & ".join(map(_escaped, cells)) + r" \\" for cells in [heads, *lines]]
    columns = "l" + "r" * (len(heads) - 1)
    about = [f"% {results['setting']}", *(f"% {row['row']}: {row['command']}" for row in results["rows"])]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([*about, begin, r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", end, ""])


def _escaped(text: str) -> str:
    for character in r"&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$")


def failures(results: Results) -> list[tuple[str, str]]:
    """Name and reason of each training that failed."""
    return [
        (f"{row['row']}, {row['epochs']} epochs, seed {trial['seed']}", trial["failed"])
        for row in results["rows"]
        for trial in row["trials"]
        if "failed" in trial
    ]


def draw_plot(results: Results) -> Figure:
    """Draw each row's gain over its baseline, with the interval, over parameters, operations and time.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  of an extra
    except ImportError:
        raise missing_extra("plot.svg", "plots") from None

    rows = [row for row in results["rows"] if row["baseline"] or "difference" in row]
    costs: Sequence[tuple[str, Callable[[ResultRow], float]]] = (
        ("prediction time, ratio to the baseline", lambda row: row["ratio"]),
        ("parameters, millions", lambda row: row["parameters"] / 1e6),
        ("multiply-accumulates, 10⁹", lambda row: row["macs"]["all"] / 1e9),
    )
    figure = Figure(figsize=(13, 4.5 + 0.12 * len(rows)), layout="constrained")
    several = len({row["epochs"] for row in rows}) > 1
    panels = figure.subplots(1, len(costs), sharey=True)
    for panel, (label, cost) in zip(panels, costs, strict=True):
        panel.axhline(0, color="0.6", linewidth=1)
        for number, row in enumerate(rows, 1):
            name = f"{number}  {row['row']}" + f", {row['epochs']} epochs" * several
            gain, half = _gain(row)
            marker = "D" if row["baseline"] else "o"
            color = f"C{number % 10}"
            panel.errorbar(cost(row), gain, yerr=half, fmt=marker, color=color, capsize=2, label=name)
            place = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 8}
            panel.annotate(str(number), (cost(row), gain), **place)
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("AP, percent, over the baseline (corrected 95 % interval)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=8)
    return figure


def _gain(row: ResultRow) -> tuple[float, float | None]:
    """Difference to the baseline, percent, and half of its interval; None: there is none."""
    if row["baseline"]:
        return 0.0, None
    step = row["difference"]
    return 100 * step["mean"], None if step["high"] is None else 100 * (step["high"] - step["mean"])


def write_tables(folder: Path, results: Results) -> None:
    """Write results.json, table.md, table.csv, table.tex and plot.svg into the folder of a grid, or none.

    Without matplotlib the plot is skipped, with a message. Raises UserError where they cannot be written.
    """
    with replacing_together(folder, AGAIN) as parts:
        parts.text(RESULTS, json.dumps(results, indent=1))
        for name, text in (("md", markdown), ("csv", comma_separated), ("tex", latex)):
            parts.text(f"table.{name}", text(results))
        try:
            plot = draw_plot(results)
        except UserError as error:
            say(f"no plot: {error}")
            return
        with parts.write("plot.svg") as part:
            plot.savefig(part, format="svg")
