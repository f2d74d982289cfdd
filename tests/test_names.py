"""Requests that are refused before torch is imported, and data commands that never import it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.numpy import save_file

from msefpn import plugins
from msefpn.checkpoint import KEY, write_info
from msefpn.config import Config, load_recipe, recipe_names
from msefpn.models import build, probe, save
from msefpn.names import _timm_names, check_names, known_inputs
from tests import TINY, copy_to

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
    "train --data BROKEN": "train.json is not a complete json",
    "train --data EMPTY": "no train split in",
    "train --data DATA --detector fast_rcnn --init none": "fast_rcnn needs proposals",
    "ablate fpn pafpn --data BROKEN --out grid": "train.json is not a complete json",
    "ablate fpn --seeds 0": "seeds is 0",
    "ablate fpn fpn": "row 'fpn' is there twice",
    "cost fpn --rounds 0": "rounds is 0",
    "cost fpn --out DATA/train.json": "is there already",
    "predict RUN DATA/val --save pictrues": "did you mean 'pictures'",
    "predict RUN DATA/val --classes dragon": "unknown class 'dragon'",
    "predict RUN DATA/val --proposals x.json": "finds its own proposals",
    "predict RUN DATA/val --out DATA": "is not empty",
    "predict RUN nowhere.jpg": "no image found at 'nowhere.jpg'",
    "evaluate RUN --split all": "unknown split 'all'",
    "evaluate RUN --data BROKEN": "val.json is not a complete json",
    "evaluate RUN --data DATA --batch 0": "batch is 0",
    "evaluate RUN": "is not a run folder",
    "export RUN --format onxx": "did you mean 'onnx'",
    "export RUN --out detector.txt": "must end in .onnx",
    "export RUN": "no images to compare with",
    "export RUN --data nowhere": "nowhere",
    "export RUN --data BROKEN": "val.json is not a complete json",
    "export RUN --precision int8 --data DATA --calibrate nowhere": "nowhere",
    "explain RUN nowhere.jpg": "nowhere.jpg",
    "explain RUN nowhere.jpg --out page.txt": "is not an HTML file",
    "upgrade RUN --neck pafpm": "did you mean 'pafpn'",
    "upgrade RUN --out weights.bin": "is not a .safetensors file",
    "import nowhere.pth": "checkpoint nowhere.pth does not exist",
    "import nowhere.py": "nowhere.py does not exist",
}
WORKING = (
    "check DATA",
    "convert DATA --out yolo --to yolo",
    "convert yolo --out coco",
    "split DATA --out divided",
)
PREDICTING = "predict w.safetensors DATA/val/000001.jpg --save json --out found"


def test_torch_is_not_imported(tiny_set: Path, tmp_path: Path) -> None:
    program = (
        "import contextlib, io, sys\n"
        "from msefpn.cli import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    printed = io.StringIO()\n"
        "    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):\n"
        "        code = main(line.split())\n"
        "    print(code, 'torch' in sys.modules, printed.getvalue().strip())\n"
        "print({'torch._dynamo', 'sympy', 'wandb'} & set(sys.modules))\n"
    )
    places = {"DATA": tiny_set, "RUN": tmp_path / "run", "BROKEN": tmp_path / "broken", "EMPTY": tmp_path}
    _write_weights(places["RUN"])
    _cut_jsons(tiny_set, places["BROKEN"])
    options = {"roi": {"hidden": 16}}
    small = Config(backbone="test_resnet", neck="fpn", size="96", detector_options=options)
    save(build(small, ["circle"]), tmp_path / "w.safetensors")
    lines = [
        re.sub("|".join(places), lambda found: str(places[found[0]]), line)
        for line in (*REFUSED, *WORKING, PREDICTING)
    ]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input="\n".join(lines), cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    for (line, words), answer in zip(REFUSED.items(), answers, strict=False):
        assert answer.startswith("2 False error: "), (line, answer)
        assert words in answer, line
    working = [answer.strip() for answer in answers[len(REFUSED) :]]
    assert working == ["0 False"] * len(WORKING) + ["0 True", "set()"], "torch's compiler takes seconds"


def _write_weights(folder: Path) -> None:
    """What is read of a run's weights before torch is imported: what they describe."""
    folder.mkdir()
    about = json.dumps(write_info(load_recipe(str(TINY)), ["circle"], [1]))
    save_file({"x": np.zeros(1)}, folder / "best.safetensors", {KEY: about})


def _cut_jsons(data: Path, folder: Path) -> None:
    """A data set with half of each json."""
    copy_to(data, folder)
    for split in ("train", "val"):
        text = (data / f"{split}.json").read_text()
        (folder / f"{split}.json").write_text(text[: len(text) // 2])


def test_what_detectors_read_is_known_before_they_are_built() -> None:
    for name in plugins.OUR_NAMES["detector"]:
        built = probe(Config(detector=name, backbone="test_resnet", neck="fpn"))
        assert known_inputs(name) == (name, built.learns_masks, built.takes_proposals)


@pytest.mark.parametrize("kind", plugins.OUR_NAMES)
def test_the_names_are_those_that_the_package_registers(kind: str) -> None:
    registered = {name for name, plugin in plugins.known(kind).items() if plugin.origin == plugins.OURS}
    assert set(plugins.OUR_NAMES[kind]) == registered


def test_the_names_of_backbones_are_timms() -> None:
    assert {name.split(".")[0] for name in timm.list_models()} <= _timm_names()
    for name in recipe_names():
        check_names(load_recipe(name))
