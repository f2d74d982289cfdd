"""A recipe written from a configuration of another library."""

from __future__ import annotations

from pathlib import Path

import yaml

from msefpn.errors import UserError
from msefpn.importing.mmdetection import read_mmdetection_config
from msefpn.runs.console import say
from msefpn.runs.folder import check_file
from msefpn.writing import new_parents, write_text


def import_recipe(file: Path, out: Path | None) -> Path:
    """Write a recipe and say what it does not hold; see `msefpn.commands.models.import_file`."""
    out = out or Path(f"{file.stem}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"out '{out}' must end in .yaml, as recipes do")
    check_file(out)
    values, notes = read_mmdetection_config(file)
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=100)
    with new_parents(out):
        write_text(out, f"# From {file.name} of mmdetection.\n{text}")
    say(*(f"not carried over: {note}" for note in notes))
    what = ", ".join(values[key] for key in ("detector", "backbone", "neck"))
    say(f"{out}: {what}; class names come from your data")
    say(f"lr is taken as stated for {values['batch']} images a step: correct lr or batch if yours differed")
    say(f"train: msefpn train --data DIR --recipe {out}")
    return out
