"""The tables of a grid say what its results say, in each format."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from msefpn.ablation import tables as ablation


def row(name: str, aps: list[float | str], **more: Any) -> dict[str, Any]:
    """Return a row of results.json; a text in place of an AP: why that training failed."""
    cells = [
        {"seed": seed, **({"failed": ap} if isinstance(ap, str) else {"AP": ap, "AP50": ap})}
        for seed, ap in enumerate(aps)
    ]
    done = [ap for ap in aps if not isinstance(ap, str)]
    numbers = {"mean": sum(done) / len(done), "spread": 0.012, "mean50": 0.6} if done else {}
    base: dict[str, Any] = {"row": name, "epochs": 6, "published": None, "parameters": 1.5e6, "ratio": 1.25}
    base |= {"macs": {"all": 2.5e9}, "command": f"msefpn train --recipe {name}", "baseline": False}
    return base | numbers | {"trials": cells} | more


def difference(low: float | None, high: float | None) -> dict[str, Any]:
    mean = 0.01 if low is None or high is None else (low + high) / 2
    return {"difference": {"mean": mean, "low": low, "high": high, "pairs": 2, "confidence": 0.95}}


RESULTS: dict[str, Any] = {
    "setting": "size 96, 50 % of it",
    "rows": [
        row("fpn", [0.4, 0.42], baseline=True),
        row("ablation_gcg", [0.4, 0.44], **difference(-0.01, 0.03), published={"AP": None, "gain": 0.012}),
        row("up", [0.5, 0.5], **difference(0.05, 0.07), published={"AP": 0.394, "gain": 0.021}),
        row("down", [0.3, "no memory"], **difference(-0.2, -0.1), published={"AP": 0.373, "gain": 0.0}),
        row("one", [0.3], **difference(None, None), spread=None),
        row("none", ["no memory", "disk full"]),
    ],
}


def test_verdicts() -> None:
    found = [ablation.verdict(row) for row in RESULTS["rows"]]
    assert found == ["baseline", "no difference seen", "better", "worse", "one seed: no interval", ""]


def test_table() -> None:
    heads, lines = ablation.table_cells(RESULTS)
    first, second, up, down, one, none = (dict(zip(heads, line, strict=True)) for line in lines)
    assert first["AP"] == "41.0 ± 1.2"
    assert (first["params M"], first["GMAC"], first["time"]) == ("1.50", "2.50", "1.25")
    assert second["difference"] == "+1.0 (-1.0 to +3.0)"
    assert [line["published"] for line in (second, up, down, one)] == ["(+1.2)", "39.4 (+2.1)", "37.3", ""]
    assert down["AP"] == "30.0 ± 1.2 (1 of 2 failed)"
    assert (one["AP"], one["difference"]) == ("30.0", "+1.0")
    assert none["AP"] == "failed"
    assert "epochs" not in heads
    longer = {**RESULTS, "rows": [*RESULTS["rows"], row("fpn", [0.6], epochs=18)]}
    assert [line[1] for line in ablation.table_cells(longer)[1]] == ["6"] * 6 + ["18"]


def test_formats(tmp_path: Path) -> None:
    ablation.write_tables(tmp_path, RESULTS)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == RESULTS
    heads, lines = ablation.table_cells(RESULTS)
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.splitlines()[0] == f"| {' | '.join(heads)} |"
    assert all(f"| {' | '.join(line)} |" in page for line in lines)
    assert "- down, 6 epochs, seed 1: no memory" in page
    assert "msefpn train --recipe ablation_gcg" in page
    read = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text(encoding="utf-8"))))
    assert [line["row"] for line in read] == ["fpn", "ablation_gcg", "up", "down", "one", "none"]
    second = {key: read[1][key] for key in ("mean", "difference", "low", "high", "published_gain", "macs")}
    assert [float(value) for value in second.values()] == pytest.approx(
        [0.42, 0.01, -0.01, 0.03, 0.012, 2.5e9]
    )
    assert (read[5]["mean"], read[3]["seeds"], read[2]["verdict"]) == ("", "1", "better")
    assert read[2]["command"] == "msefpn train --recipe up"
    latex = (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert r"ablation\_gcg & 42.0 $\pm$ 1.2 &" in latex
    assert "% size 96" in latex
    assert "% down: msefpn train --recipe down" in latex
    assert all(line.count(" & ") == len(heads) - 1 for line in latex.splitlines() if line.endswith(r"\\"))
    drawn = ElementTree.parse(tmp_path / "plot.svg")
    assert drawn.getroot().tag.endswith("svg")


@pytest.mark.parametrize("rows", [RESULTS["rows"], RESULTS["rows"][-1:]])
def test_plot_of_any_rows(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    ablation.draw_plot({**RESULTS, "rows": rows}).savefig(tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_tables_are_written_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ablation.write_tables(tmp_path, RESULTS)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "table.md", "table.csv", "table.tex")
    }
    said = 'no plot: plot.svg needs the extra: pip install "msefpn[plots]"\n'
    assert capsys.readouterr().out == said
