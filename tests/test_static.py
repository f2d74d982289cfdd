"""Python files read without running them."""

import ast
import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from msefpn.errors import UserError
from msefpn.static import Computed, merged, read_static


def read(folder: Path, text: str, **bases: str) -> dict[str, Any]:
    """The values of a text, with the texts of bases beside it."""
    for name, base in bases.items():
        (folder / f"{name}.py").write_text(base, encoding="utf-8")
    (folder / "own.py").write_text(text, encoding="utf-8")
    return read_static(folder / "own.py").values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x = 3", 3),
        ("x: int = -1.5", -1.5),
        ("x = dict(a=1, b=[2, (3, 'c')], c=None)", {"a": 1, "b": [2, (3, "c")], "c": None}),
        ("x = {'a': {1: True}}", {"a": {1: True}}),
        ("lr = 0.02\nx = lr / 16 * 8", 0.01),
        ("root = 'data/'\nx = root + 'train'", "data/train"),
        ("one = dict(a=1)\nx = dict(b=2, **one)", {"a": 1, "b": 2}),
        ("one = [1]\nx = one + [2] * 2", [1, 2, 2]),
        ("one = dict(a=[5, 6])\nx = one['a'][1]", 6),
        ("x = dict(a=1)\nx['b'] = 2", {"a": 1, "b": 2}),
        ("'a text'\nx = list((1, 2))", [1, 2]),
        ("x = 1\nx = 2", 2),
    ],
)
def test_values_of_literals(text: str, value: Any, tmp_path: Path) -> None:
    assert read(tmp_path, text)["x"] == value


@pytest.mark.parametrize(
    "text",
    [
        "import os\nx = os.environ['HOME']",
        "x = open('/etc/passwd').read()",
        "x = [i for i in range(3)]",
        "x = 'a' * 10 ** 9",
        "x = 'a' * 1000000000",
        "x = '%1000000000d' % 1",
        "x = 1\nx += 1",
        "x = dict(a=1)\nx.update(a=2)",
        "x = dict(a=1)\nfor key in x:\n    x[key] = 2",
        "x = 1\nif True:\n    x = 2",
        "def x():\n    return 1",
        "x = __import__('os').system('touch ran')",
        "dict = print\nx = dict(a=1)",
        "x = unknown",
        "x = 1 / 0",
        "a = [[1]]\nx = a[7]",
    ],
)
def test_what_is_computed_is_marked_and_never_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(read(tmp_path, text)["x"], Computed)
    assert not (tmp_path / "ran").exists()


def test_a_computed_item_leaves_the_others(tmp_path: Path) -> None:
    found = read(tmp_path, "x = dict(a=len('abc'), b=[1, max(1, 2)])")["x"]
    assert isinstance(found["a"], Computed)
    assert found["b"][0] == 1
    assert (found["b"][1].line, found["b"][1].text) == (1, "max(1, 2)")


def test_bases_are_merged_key_by_key(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "_base_ = ['one.py', 'two.py']\n"
        "model = dict(depth=101, neck=dict(_delete_=True, type='BFP'), list=[3])\n"
        "again = _base_.model.depth\nmmcv = {{_base_.lr}}\n",
        one="model = dict(depth=50, groups=32, neck=dict(type='FPN', levels=5), list=[1, 2])",
        two="lr = 0.02",
    )
    assert found["model"] == {"depth": 101, "groups": 32, "neck": {"type": "BFP"}, "list": [3]}
    assert (found["lr"], found["again"], found["mmcv"]) == (0.02, 50, 0.02)


def test_items_of_a_list_are_put_over_by_index() -> None:
    base = [{"a": 1, "b": 2}, {"a": 3}]
    assert merged(base, {"1": {"a": 4}}, "x.py") == [{"a": 1, "b": 2}, {"a": 4}]
    assert base[1] == {"a": 3}
    with pytest.raises(UserError, match="item 2 is put over a list of 2"):
        merged(base, {"2": {"a": 4}}, "x.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "own.py, line 1 is not valid Python"),
        ("_base_ = 'missing.py'", "missing.py does not exist: copy"),
        ("_base_ = 'own.py'", "based on each other"),
        ("_base_ = 'mmdet::faster_rcnn.py'", "inside an installed package"),
        ("_base_ = [name for name in 'ab']", "_base_ is <"),
        ("with read_base():\n    from .base import *", "imports its bases"),
        ("x = " + "(" * 5000 + ")" * 5000, "own.py"),
        ("x = '\0'", "not valid Python"),
    ],
)
def test_what_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["-" * 900 + "1", "a" + ".b" * 900, "1" + "+1" * 3000, "dict(a=" * 90 + "1" + ")" * 90, "-" * 9999 + "1"],
)
def test_deep_nesting_gives_a_value_or_one_line(text: str, tmp_path: Path) -> None:
    with contextlib.suppress(UserError):
        assert "x" in read(tmp_path, f"x = {text}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_base_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "base.py")
    (tmp_path / "own.py").write_text("_base_ = 'base.py'\n")
    with pytest.raises(UserError, match=r"is not a regular file: name the \.py file"):
        read_static(tmp_path / "own.py")
    (tmp_path / "base.py").unlink()
    (tmp_path / "base.py").symlink_to("base.py")
    with pytest.raises(UserError, match=r"Too many levels of symbolic links.*: name the \.py file"):
        read_static(tmp_path / "own.py")


def test_nothing_of_the_reader_runs_code() -> None:
    """It calls neither `eval` nor `exec` nor `compile` nor an import by name."""
    source = Path(read_static.__code__.co_filename).read_text(encoding="utf-8")
    called = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec", "compile", "__import__", "getattr"}
