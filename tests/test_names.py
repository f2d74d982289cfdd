"""Requests that are refused before torch is imported, and data commands that never import it."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm

from msefpn import plugins
from msefpn.config import load_recipe, recipe_names
from msefpn.names import _timm_names, check_names

REFUSED = {
    "train --data nowhere": "data folder 'nowhere' does not exist",
    "train --train-json nowhere.json": "nowhere.json' does not exist",
    "train --neck fpm": "did you mean 'fpn'",
    "train --detector retinanett": "did you mean 'retinanet'",
    "train --augment papper": "did you mean 'paper'",
    "train --logger cvs": "did you mean 'csv'",
    "train --backbone resnet5": "did you mean resnet50",
    "train --init nowhere": "initial weights nowhere do not exist",
    "predict nowhere DATA/val": "no weights at nowhere",
    "evaluate nowhere": "no weights at nowhere",
    "export nowhere": "no weights at nowhere",
    "explain nowhere x.jpg": "no weights at nowhere",
    "demo nowhere": "no weights at nowhere",
    "report nowhere": "'nowhere' is not a run folder",
    "ablate fpm": "did you mean 'fpn'",
    "cost fpm": "did you mean 'fpn'",
    "check nowhere": "nowhere",
}
WORKING = (
    "check DATA",
    "convert DATA --out yolo --to yolo",
    "convert yolo --out coco",
    "split DATA --out divided",
)


def test_torch_is_not_imported(tiny_set: Path, tmp_path: Path) -> None:
    program = (
        "import contextlib, io, sys\n"
        "from msefpn.cli import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    printed = io.StringIO()\n"
        "    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):\n"
        "        code = main(line.split())\n"
        "    print(code, 'torch' in sys.modules, printed.getvalue().strip())\n"
    )
    lines = [line.replace("DATA", str(tiny_set)) for line in (*REFUSED, *WORKING)]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input="\n".join(lines), cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    for (line, words), answer in zip(REFUSED.items(), answers, strict=False):
        assert answer.startswith("2 False error: "), (line, answer)
        assert words in answer, line
    assert [answer.strip() for answer in answers[len(REFUSED) :]] == ["0 False"] * len(WORKING)


@pytest.mark.parametrize("kind", plugins.OUR_NAMES)
def test_the_names_are_those_that_the_package_registers(kind: str) -> None:
    registered = {name for name, plugin in plugins.known(kind).items() if plugin.origin == plugins.OURS}
    assert set(plugins.OUR_NAMES[kind]) == registered


def test_the_names_of_backbones_are_timms() -> None:
    assert {name.split(".")[0] for name in timm.list_models()} <= _timm_names()
    for name in recipe_names():
        check_names(load_recipe(name))
