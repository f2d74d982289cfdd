"""Fixtures that several tests share."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from msefpn import plugins
from msefpn.data import synthetic
from tests import ROOT, processes

# Tracing makes millions of small objects and formulas: looking for garbage takes 6 %, forgetting them more.
gc.set_threshold(100_000, 50, 100)
os.environ.setdefault("SYMPY_CACHE_SIZE", "None")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole-grid",
        action="store_true",
        help="also what takes minutes: every detector on every neck and backbone, 500 images for the page",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have a folder for temporary files of libraries, some of which stay where a process is killed."""
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # folders of failed tests stay
    folder = tempfile.mkdtemp(prefix="msefpn-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Have the nursery of a process of pytest-xdist before pytest changes warnings, logging and output."""
    if hasattr(config, "workerinput") and sys.platform == "linux":
        processes.fork_nursery()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data beside the checkout; skip where it is missing."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data in {folder}, which is not here")
    return folder


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget afterwards which plug-ins a test registered."""
    before = {kind: set(table) for kind, table in plugins._TABLES.items()}
    yield
    for kind, table in plugins._TABLES.items():
        for name in [name for name in table if name not in before[kind]]:
            if table[name].origin != plugins.OURS:
                del table[name]


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw a small built-in set: 12 train and 5 val images of about 160 px."""
    folder = tmp_path_factory.mktemp("tiny") / "set"
    synthetic.draw_builtin_set(folder, train=12, val=5, seed=0, size=160)
    return folder


@pytest.fixture
def warm_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes of Python from one that has imported torch and the rest; on Linux, else as ever."""
    if sys.platform == "linux":
        monkeypatch.setattr(subprocess, "Popen", processes.WarmPython)
