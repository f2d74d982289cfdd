"""Plug-ins: registered, found, remembered by runs, never imported by themselves; mistakes are one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import msefpn
from msefpn import plugins
from msefpn.cli import main
from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models import load
from msefpn.necks import FPN
from tests import ROOT, TINY

EXAMPLES = ROOT / "examples" / "plugins"
QUICK = ("--workers", "0", "--device", "cpu")


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """Leave the tables as they were."""
    for kind in plugins.KINDS:
        plugins.known(kind)
    before = {kind: dict(table) for kind, table in plugins._TABLES.items()}
    loaded = dict(plugins._LOADED)
    yield
    for kind, table in plugins._TABLES.items():
        table.clear()
        table.update(before[kind])
    plugins._LOADED.clear()
    plugins._LOADED.update(loaded)


def train(data: Path, out: Path, *arguments: str | Path) -> int:
    """Train by the command."""
    command = ["train", "--data", data, "--recipe", TINY, "--out", out, *QUICK, *arguments]
    return main([str(word) for word in command])


def test_the_package_fills_its_tables() -> None:
    for kind, name in {
        "neck": "mse_fpn",
        "detector": "faster_rcnn",
        "loss": "focal",
        "augmentation": "paper",
        "format": "coco",
        "logger": "csv",
    }.items():
        assert plugins.known(kind)[name].origin == "msefpn"
    with pytest.raises(UserError, match="unknown kind of plug-in 'nek': did you mean 'neck'"):
        plugins.register("nek", "a")
    with pytest.raises(UserError, match="not a valid name"):
        plugins.register("neck", "fpn+mine")


def test_the_list_says_where_names_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--plugin", str(EXAMPLES / "laterals.py"), "--kind", "neck"]) == 0
    out = capsys.readouterr().out
    assert "laterals.py" in out
    assert "mse_fpn" in out
    assert main(["plugins", "--kind", "nek"]) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", "bad.py has a syntax error in line 1"),
        ("x = 1\nraise ValueError('no\\nway')\n", "bad.py cannot be imported (bad.py:2: ValueError: no way)"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (
            "from msefpn.plugins import register\n"
            "@register('neck', 'mine')\nclass A: ...\n@register('neck', 'mine')\nclass B: ...\n",
            "neck 'mine' is registered twice, by bad.py and by bad.py",
        ),
        (
            "from msefpn.plugins import register\n@register('neck', 'fpn')\nclass A: ...\n",
            "neck 'fpn' is registered twice, by msefpn and by bad.py",
        ),
        ("from msefpn.plugins import register\nregister('nek', 'a')\n", "unknown kind of plug-in 'nek'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded(
    text: str, says: str, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text(text)
    before = {kind: set(plugins.known(kind)) for kind in plugins.KINDS}
    assert train(tiny_set, tmp_path / "run", "--plugin", tmp_path / "bad.py") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "run").exists()
    assert before == {kind: set(plugins.known(kind)) for kind in plugins.KINDS}


@pytest.mark.parametrize(
    ("name", "says"), [("no.py", "'no.py' is not a file"), ("no_such_module", "No module named")]
)
def test_a_plugin_that_is_missing(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--plugin", name]) == 2
    assert says in capsys.readouterr().err


NECK = """
import torch
from torch import nn
from msefpn.plugins import register

@register("neck", "broken")
class Broken(nn.Module):
    def __init__(self, in_channels, in_strides, out_channels=256):
        super().__init__()
        self.out_channels, self.out_strides = out_channels, list(in_strides)
        self.convs = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in in_channels)

    def forward(self, features):
        maps = [conv(x) for conv, x in zip(self.convs, features)]
        return CHANGED
"""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ("maps[:-1]", "3 maps"),
        ("maps[::-1]", "stride"),
        ("[x[:, :8] for x in maps]", "out_channels"),
    ],
)
def test_a_neck_that_breaks_the_contract(
    changed: str, says: str, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text(NECK.replace("CHANGED", changed))
    plugin = ("--plugin", tmp_path / "broken.py", "--neck", "broken", "--set", "neck_options={}")
    assert train(tiny_set, tmp_path / "run", *plugin) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken" in line
    assert says in line
    assert not (tmp_path / "run").exists()


def test_a_run_remembers_its_plugin_and_nothing_imports_it(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plugin = tmp_path / "run", tmp_path / "mine.py"
    marker = tmp_path / "imported"
    text = (EXAMPLES / "laterals.py").read_text(encoding="utf-8").replace('"laterals"', '"own"')
    plugin.write_text(f"{text}\nopen({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    with_plugin = ("--plugin", str(plugin))
    assert train(tiny_set, out, "--neck", "own", "--epochs", "1", *with_plugin) == 0
    assert marker.exists()
    plugins._forget("mine.py")
    marker.unlink()
    images, needs = str(tiny_set / "val"), "needs the neck 'own' of a plug-in: give --plugin mine.py"
    for number, command in enumerate(
        (
            ["predict", str(out), images],
            ["evaluate", str(out)],
            ["report", str(out), "--out", str(tmp_path / "r.html")],
            ["explain", str(out), str(next((tiny_set / "val").iterdir())), "--out", str(tmp_path / "e.html")],
            ["export", str(out)],
            ["train", "--resume", "--out", str(out), "--epochs", "2"],
        )
    ):
        capsys.readouterr()
        plugins._LOADED.clear()
        plugins._forget("mine.py")
        code = main(command)
        told = capsys.readouterr()
        if command[0] == "report":  # what it can show, it shows, and says what is missing
            assert code == 0
            assert needs in (tmp_path / "r.html").read_text(encoding="utf-8").replace("&#x27;", "'")
        else:
            assert code == 2, (number, command)
            assert needs in told.err
        assert not marker.exists()
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2", *with_plugin]) == 0
    assert main(["predict", str(out), images, "--out", str(tmp_path / "found"), *with_plugin]) == 0


class Laterals(FPN):
    """A neck of a program."""


class Pooled(nn.Module):
    """A backbone of a program."""

    channels = (8, 8, 8, 8)
    strides = (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Average."""
        y = self.conv(x)
        return [nn.functional.avg_pool2d(y, stride) for stride in self.strides]


def test_objects_are_passed_from_python(tiny_set: Path, tmp_path: Path) -> None:
    detector = msefpn.build(["a", "b"], neck=Laterals, backbone=Pooled, neck_options={"out_channels": 16})
    assert type(detector.neck) is Laterals
    backbone = Pooled()
    run = msefpn.train(
        tiny_set,
        recipe=TINY,
        neck=Laterals,
        backbone=backbone,
        backbone_options={"frozen_stages": -1, "train_norm": True},
        workers=0,
        device="cpu",
        steps=1,
        out=tmp_path / "run",
    )
    loaded = load(run)
    assert type(loaded.neck) is Laterals
    assert type(loaded.backbone.body) is Pooled
    assert loaded.backbone.body is not backbone
    text = (run / "config.yaml").read_text(encoding="utf-8")
    assert f"neck Laterals: an object of {__name__}" in text
    del plugins._TABLES["neck"]["Laterals"], plugins._TABLES["backbone"]["Pooled"]  # as in another process
    with pytest.raises(UserError, match="of a plug-in: give the object again from Python"):
        load(run)


def test_what_a_configuration_uses() -> None:
    config = Config(neck="fpn+bfp", logger=("csv", "mine"), detector_options={"roi": {"box_loss": "l1"}})
    assert {("neck", "bfp"), ("logger", "mine"), ("loss", "l1")} <= set(config.uses())
    assert plugins.origins(config.uses()) == {}
