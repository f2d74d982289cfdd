"""The cells of the notebooks as they are, on few images and for an epoch; `make docs` runs them whole."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

import msefpn
from msefpn.data import synthetic
from tests import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SHORT: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    (synthetic, "draw_builtin_set", {"train": 4}),
    (msefpn, "train", {"epochs": 1}),
    (msefpn, "predict", {"score": 0.0, "max_per_image": 3}),
)
"""Functions that the cells call, and what replaces their own arguments; after an epoch no score is high."""


def with_arguments(function: Callable[..., Any], changed: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        return function(*args, **given | changed)

    return call


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[notebook.stem for notebook in NOTEBOOKS])
def test_cells_run(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module, name, changed in SHORT:
        monkeypatch.setattr(module, name, with_arguments(getattr(module, name), changed))
    plt.switch_backend("agg")
    names: dict[str, Any] = {"__name__": notebook.stem}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    plt.close("all")
