"""The examples of plug-ins pass the checks that users call; those of the package train together.

Those in files are trained by the commands of their pages, see test_docs_commands.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import msefpn
from msefpn import plugins
from msefpn.testing import check_backbone, check_detector, check_neck
from tests import ROOT, TINY

PACKAGE = ROOT / "examples" / "package" / "src"
FILES = ROOT / "examples" / "plugins"
MODULES = ("msefpn_example", *(path.stem for path in FILES.glob("*.py")))


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Make the examples importable, and forget them afterwards; the package's module."""
    for kind in plugins.KINDS:
        plugins.known(kind)
    before = {kind: dict(table) for kind, table in plugins._TABLES.items()}
    monkeypatch.syspath_prepend(PACKAGE)
    monkeypatch.syspath_prepend(FILES)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("msefpn_example")
    for kind, table in plugins._TABLES.items():
        table.clear()
        table.update(before[kind])
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("module", "name"), [("laterals", "Laterals"), ("msefpn_example", "MeanMap")])
def test_necks(module: str, name: str, examples: ModuleType) -> None:
    neck = getattr(importlib.import_module(module), name)
    check_neck(neck, extra_levels="pool", start_level=1)


def test_backbone(examples: ModuleType) -> None:
    check_backbone(importlib.import_module("backbone").resnet18)


@pytest.mark.parametrize(
    ("module", "name", "export"), [("head", "points", False), ("msefpn_example", "squares", True)]
)
def test_detectors(
    module: str, name: str, export: bool, examples: ModuleType, pytestconfig: pytest.Config
) -> None:
    export = export or pytestconfig.getoption("--whole-grid")  # it is most of the time
    check_detector(getattr(importlib.import_module(module), name), export=export)


def test_package_trains(examples: ModuleType, tiny_set: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    msefpn.train(
        tiny_set,
        recipe=TINY,
        neck="mean_map",
        detector="squares",
        augment="darker",
        logger=["csv", "jsonl", "hours"],
        set=["detector_options={anchor_scale: 3}"],
        backbone="test_resnet",
        steps=1,
        workers=0,
        out=run,
    )
    assert "AP" in (run / "hours.txt").read_text(encoding="utf-8")
    assert type(msefpn.load(run).neck) is examples.MeanMap
