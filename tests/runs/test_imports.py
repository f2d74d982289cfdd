"""What stands in for torch's compiler while timm and torchvision are imported."""

import sys
from types import ModuleType
from typing import Any

import pytest

from msefpn.runs import imports


def test_stand_ins_go_and_do_as_the_compiler_does_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (imports._COMPILER, imports._UTILS, imports._LOGGER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with imports._standing_in():
        compiler: Any = sys.modules[imports._COMPILER]
        marked = compiler.disable(lambda x: x + 1)
        also = compiler.disable(recursive=False, reason="no")(lambda x: x + 2)
        supported = sys.modules[imports._UTILS].is_compile_supported
        with pytest.raises(ImportError):
            __import__(imports._LOGGER)
    assert not {imports._COMPILER, imports._UTILS, imports._LOGGER} & set(sys.modules)
    assert (marked(1), also(1)) == (2, 3)
    calls: list[Any] = []
    real: Any = ModuleType(imports._COMPILER)

    def disable(function: Any, *options: Any, **more: Any) -> Any:
        calls.append((options, more))
        return function

    real.disable = disable
    utils: Any = ModuleType(imports._UTILS)
    utils.is_compile_supported = lambda device: device == "cpu"
    monkeypatch.setitem(sys.modules, imports._COMPILER, real)
    monkeypatch.setitem(sys.modules, imports._UTILS, utils)
    assert [marked(1), marked(1), also(1)] == [2, 2, 3]
    assert calls == [((True,), {}), ((False,), {"reason": "no"})]
    assert supported("cpu")
    assert not supported("cuda")


def test_what_is_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_standing_in", None)
    imports.import_models()  # torchvision is imported here
