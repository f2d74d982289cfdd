"""Weights written from a checkpoint of another library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msefpn.checkpoint import check_there
from msefpn.errors import UserError
from msefpn.runs.console import say
from msefpn.runs.folder import check_file
from msefpn.writing import new_parents, write_text


def import_weights(
    file: Path, out: Path | None, *, classes: Sequence[str], style: str | None, table: Path | None
) -> Path:
    """Write weights and say what became of the tensors; see `msefpn.commands.models.import_file`."""
    out = out or Path(f"{file.stem}.safetensors")
    if out.suffix != ".safetensors":
        raise UserError(f"out '{out}' must end in .safetensors, as weights do")
    for path in (out, table):
        if path is not None:
            check_file(path)
    check_there(file)

    from msefpn.models import read_foreign, save  # noqa: PLC0415  slow to import

    foreign = read_foreign(file, style=style)
    detector = foreign.detector(classes)
    with new_parents(out):
        save(detector, out)
    if table is not None:
        with new_parents(table):
            write_text(table, foreign.table())
    say(*foreign.lines(), f"written: {out}", f"detect: msefpn predict {out} PHOTOS")
    return out
