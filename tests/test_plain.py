"""What others wrote does no harm in a terminal or in a spreadsheet."""

import csv
import io
import re
from pathlib import Path

import pytest

from msefpn.errors import UserError
from msefpn.plain import CsvRows, cell, one_line, printable
from msefpn.runs.console import say, show_table
from tests.test_project_rules import SOURCE

EVIL = "a\x1b[31mb\x9b2Jc\rd\x07e\u202ef\ud800g\u2028h\x7fi"
WRITTEN = r"a\x1b[31mb\x9b2Jc\x0dd\x07e\u202ef\ud800g\u2028h\x7fi"


def test_control_characters_are_written_out() -> None:
    assert printable(EVIL) == WRITTEN
    assert printable("tab\tand\nline, \u00e9 \u4e2d \U0001f600 \u05d0") == (
        "tab\tand\nline, \u00e9 \u4e2d \U0001f600 \u05d0"
    )
    assert one_line("a\n b\x1bc\u2028d") == r"a b\x1bc d"


def test_everything_printed_passes(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    show_table(["name"], [[EVIL]])
    out = capsys.readouterr().out
    assert out.count(WRITTEN) == 2
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out)
    assert str(UserError(f"one\ntwo {EVIL}")) == "one two " + one_line(EVIL)


@pytest.mark.parametrize("text", ["=1+1.jpg", "+1+1", "-a.jpg", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1"])
def test_a_text_is_never_a_formula(text: str) -> None:
    out = io.StringIO()
    CsvRows(out).add([text, -1.5, "-1.5", 7, None, "cat"])
    (row,) = csv.reader(io.StringIO(out.getvalue()))
    assert row[0].startswith("'")
    assert row[1:] == ["-1.5", "-1.5", "7", "", "cat"]


def test_numbers_stay_numbers() -> None:
    assert [cell(value) for value in (-3, 1e-9, None, "-2", "1e5", "")] == [-3, 1e-9, None, "-2", "1e5", ""]


def test_one_place_prints_and_one_writes_csv() -> None:
    """Elsewhere nothing is printed but what this process made itself, and no csv writer is used."""
    prints, writers = set(), set()
    for path in SOURCE.rglob("*.py"):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix()
        if re.search(r"(?<![\w.])print\(", text):
            prints.add(name)
        if re.search(r"csv\.(writer|DictWriter)", text):
            writers.add(name)
    assert writers == {"plain.py"}
    assert prints <= {"runs/console.py", "cli.py", "ablation/worker.py", "ablation/cost.py"} | {
        name for name in prints if name.startswith("web/")
    }
    for name in ("cli.py", "ablation/worker.py"):
        for line in re.findall(r"print\(.*", Path(SOURCE, name).read_text(encoding="utf-8")):
            assert (
                "printable(" in line or "one_line(" in line or "_overview()" in line or "__version__" in line
            )
