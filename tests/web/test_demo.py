"""`msefpn demo`: from its arguments to the server."""

import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

import msefpn
from msefpn.config import load_recipe
from msefpn.errors import UserError
from msefpn.models import build, save
from msefpn.web.demo import newest_run, open_runs
from msefpn.web.server import is_local, listen
from tests import TINY


def test_port_and_host() -> None:
    with listen("127.0.0.1", 0) as taken:
        assert is_local(taken)
        number = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {number} is in use: give another with --port"):
            listen("127.0.0.1", number)
    with listen("0.0.0.0", 0) as taken:
        assert not is_local(taken)
    with pytest.raises(UserError, match="port is 70000"):
        listen("127.0.0.1", 70000)
    with pytest.raises(UserError, match=r"host '300\.1\.1\.1'"):
        listen("300.1.1.1", 0)
    with pytest.raises(UserError, match=r"host '192\.0\.2\.1'"):  # an address of no machine
        listen("192.0.2.1", 0)


def test_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name one, or make one with 'msefpn train'"):
        newest_run(tmp_path)
    for name in ("old", "young", "without"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("last" if name == "without" else "best.safetensors")).touch()
    os.utime(tmp_path / "old" / "best.safetensors", (1, 1))
    assert newest_run(tmp_path) == tmp_path / "young"


def test_runs_are_named_without_their_path(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    save(build(load_recipe(str(TINY)), ["a"]), run / "best.safetensors")
    shutil.copy(run / "best.safetensors", run / "last.safetensors")
    opened = open_runs([run, run / "best.safetensors", run / "last.safetensors"], size="64", device="cpu")
    assert [shown.name for shown in opened] == ["mine", "mine", "mine last.safetensors"]
    given = replace(load_recipe(str(TINY)), detector="fast_rcnn", detector_options={})
    save(build(given, ["a"]), run / "best.safetensors")
    with pytest.raises(UserError, match="is a fast_rcnn, which needs proposals"):
        open_runs([run], size=None, device="cpu")


def test_demo_tells_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="3 runs are given"):
        msefpn.demo(["a", "b", "c"], port=0)
    with pytest.raises(UserError, match="limits of images must be above 0"):
        msefpn.demo(port=0, max_megapixels=0)
    with pytest.raises(UserError, match="limits of images must be above 0"):
        msefpn.demo(port=0, max_megabytes=float("inf"))
    with pytest.raises(UserError, match="allowed host 'http://lab' is not a host name"):
        msefpn.demo(port=0, allowed_host="http://lab")
    with pytest.raises(UserError, match="'runs' holds none"):
        msefpn.demo(port=0)
    with pytest.raises(UserError, match="no weights at nowhere"):
        msefpn.demo("nowhere", port=0)
    Path("run.onnx").touch()
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="is in use"):
        msefpn.demo("run.onnx", port=taken.getsockname()[1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "msefpn\[demo\]"'):
        msefpn.demo("nowhere", port=0)
    assert capsys.readouterr().out == ""


def test_demo_tells_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: uvicorn.Server, sockets: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    save(build(load_recipe(str(TINY)), ["a"]), tmp_path / "runs" / "mine" / "best.safetensors")
    msefpn.demo(port=0, device="cpu")
    told = capsys.readouterr().out
    assert told.startswith("mine: http://127.0.0.1:")
    assert "warning" not in told
    msefpn.demo(port=0, device="cpu", host="0.0.0.0")
    assert "warning: everyone who can reach this machine can open the page" in capsys.readouterr().out
