"""Names to objects: the package's own parts and those that users add, in one table for each kind.

    from msefpn.plugins import register

    @register("neck", "laterals")
    class Laterals(Neck):
        ...

The tables are filled by the package, by installed packages with an entry point in the group `msefpn` (a
module that registers), and by files and modules that the user names (`--plugin`, or `load` in Python).
Nothing is ever imported because a checkpoint or a run folder names it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from msefpn.errors import UserError, unknown_name
from msefpn.reading import real_path

T = TypeVar("T")

GROUP = "msefpn"
"""Entry points of this group are modules that register; each is imported when a name is first looked up."""
YOUR_OWN = "; your own: --plugin FILE"
"""Hint of the message for an unknown name."""
OURS = "msefpn"
"""Origin of what the package itself registers."""
KINDS = {
    "neck": "msefpn.models.factory",
    "backbone": "msefpn.models.backbone",
    "detector": "msefpn.models.detectors",
    "loss": "msefpn.models.losses",
    "augmentation": "msefpn.data.transforms",
    "format": "msefpn.data.formats",
    "logger": "msefpn.training.loggers",
    "callback": "msefpn.training.callbacks",
}
"""Each kind, and the module of the package that registers its own of that kind."""
OUR_NAMES = {
    "neck": (
        *("ac_fpn", "afpn", "aug_fpn", "bfp", "bifpn", "ce_fpn", "fpn", "freq_fusion", "mse_fpn", "pafpn"),
        "res_mse_fpn",
    ),
    "detector": (
        *("cascade_rcnn", "fast_rcnn", "faster_rcnn", "fcos", "mask_rcnn", "retinanet", "ssd", "yolov3"),
    ),
    "augmentation": ("mixup", "mosaic", "multiscale", "none", "paper", "strong"),
    "logger": ("csv", "jsonl", "mlflow", "tensorboard", "trackio", "wandb"),
    "callback": (),
}
"""What the package registers of the kinds that commands name, so that a wrong name is refused at once."""
OUR_INPUTS = {"fast_rcnn": "proposals", "mask_rcnn": "masks"}
"""What detectors of the package read beside images and boxes, so that data is read before they are built."""


class Plugin(NamedTuple):
    """An entry of a table."""

    object: Any
    """A class or factory; the protocol of its kind says how it is called."""
    origin: str
    """`msefpn`, a file name, a module, or an installed package with its version."""


_TABLES: dict[str, dict[str, Plugin]] = {kind: {} for kind in KINDS}
_LOADED: dict[str, tuple[int, int]] = {}
"""Files and modules that `load` imported; of files, their time and size then."""
_origin: list[str] = []
"""What is being imported, the innermost last."""
_installed = False


def register(kind: str, name: str) -> Callable[[T], T]:
    """Enter a class or factory in a table, as a decorator.

    Args:
        kind: key of `KINDS`.
        name: what configurations and commands call it.

    Raises:
        UserError: an unknown kind, a name that cannot be one, or a name that is taken.
    """
    if kind not in KINDS:
        raise unknown_name("kind of plug-in", kind, KINDS)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{kind} {name!r} is not a valid name: use letters, digits, '_', '-' and '.'")

    def enter(found: T) -> T:
        module = getattr(found, "__module__", None) or type(found).__module__
        own = OURS if module.split(".")[0] == OURS else _origin[-1] if _origin else module
        taken = _TABLES[kind].get(name)
        again = taken is not None and module == "__main__" and own == taken.origin  # a notebook's cell
        if taken is not None and taken.object is not found and not again:
            raise UserError(
                f"{kind} '{name}' is registered twice, by {taken.origin} and by {own}: rename one of them"
            )
        _TABLES[kind][name] = Plugin(found, own)
        return found

    return enter


def find(kind: str, name: str) -> Any:
    """Return the class or factory of a name. Raises UserError with the known names for an unknown one."""
    table = known(kind)
    if name not in table:
        raise unknown_name(kind, name, table, hint=YOUR_OWN)
    return table[name].object


def known(kind: str) -> Mapping[str, Plugin]:
    """Return the table of a kind, after importing what fills it."""
    global _installed
    importlib.import_module(KINDS[kind])
    if not _installed:
        _installed = True
        for entry in importlib.metadata.entry_points(group=GROUP):
            package = entry.dist
            origin = f"{package.name} {package.version}" if package is not None else entry.value
            with _importing(origin, f"installed plug-in {origin}", "fix or uninstall it"):
                entry.load()
    return _TABLES[kind]


def are_there_others() -> bool:
    """Whether there may be plug-ins: loaded, installed, or passed as objects."""
    if _LOADED or any(plugin.origin != OURS for table in _TABLES.values() for plugin in table.values()):
        return True
    return not _installed and bool(importlib.metadata.entry_points(group=GROUP))


def load(names: Iterable[str | Path] | str | Path) -> None:
    """Import plug-ins: files, or modules that Python finds.

    Raises:
        UserError: one is missing, has a syntax error, raises at import, or takes a name that is taken.
    """
    for name in [names] if isinstance(names, (str, Path)) else names:
        path = Path(name)
        if path.suffix == ".py" or path.exists():
            _load_file(path)
        elif str(name) not in _LOADED:
            with _importing(str(name), f"plug-in {name}", "give a file, or a module that Python finds"):
                importlib.import_module(str(name))
            _LOADED[str(name)] = (0, 0)


def loaded() -> list[str]:
    """What `load` imported in this process, for the processes that it starts."""
    return list(_LOADED)


def name_of(kind: str, given: Any) -> str:
    """The name of what a configuration holds by name and Python may pass as an object.

    A class or factory that is not registered yet is registered under its own name; a module (`nn.Module`)
    stands for a factory of copies of it.
    """
    if isinstance(given, str):
        return given
    for name, plugin in known(kind).items():
        if plugin.object is given:
            return name
    if isinstance(given, type) or hasattr(given, "__name__"):
        name, factory = given.__name__, given
    elif callable(given):
        name, factory = type(given).__name__, _Copies(given)
    else:
        raise UserError(f"{kind} {given!r} is neither a name nor a class, a factory or a module: pass one")
    if _TABLES[kind].get(name, Plugin(None, OURS)).origin == OURS and name in _TABLES[kind]:
        raise UserError(f"{kind} '{name}' is the name of one of the package's own: rename your class")
    _TABLES[kind][name] = Plugin(factory, f"an object of {given.__module__}")
    return name


class _Copies:
    """A factory of copies of an object."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, **options: Any) -> Any:
        if options:
            raise TypeError(f"a {type(self.original).__name__} that is passed as it is takes no options")
        return copy.deepcopy(self.original)


def origins(uses: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Where the names come from that are not the package's own.

    Args:
        uses: pairs of kind and name.

    Returns:
        `KIND NAME` -> origin.
    """
    if not are_there_others():
        return {}
    entries = {(kind, name): known(kind).get(name) for kind, name in uses}
    return {
        f"{kind} {name}": entry.origin
        for (kind, name), entry in entries.items()
        if entry is not None and entry.origin != OURS
    }


def require(needs: Mapping[str, str], kinds: Iterable[str], owner: str) -> None:
    """Refuse to go on without a plug-in that something was made with.

    Args:
        needs: as `origins` returned them.
        kinds: those that matter now.
        owner: what needs them, for the message.

    Raises:
        UserError: one is not there; the message says which `--plugin` or package to give.
    """
    for key, origin in needs.items():
        kind, _, name = key.partition(" ")
        if kind in kinds and kind in KINDS and name not in known(kind):
            module = origin.removeprefix("an object of ")
            give = f"--plugin {origin}"
            if module != origin:
                give = f"the object again from Python, or put it in a file for --plugin (it was in {module})"
            elif not origin.endswith(".py") and " " in origin:
                give = f"the package: pip install {origin.replace(' ', '==')}"
            raise UserError(f"{owner} needs the {kind} '{name}' of a plug-in: give {give}")


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"plug-in '{path}' is not a file: check the path")
    key, stat = str(real_path(path)), path.stat()
    if _LOADED.get(key) == (stat.st_mtime_ns, stat.st_size):
        return
    if key in _LOADED:  # it changed since
        _forget(path.name)
    module_name = re.sub(r"\W", "_", path.stem)
    if module_name in sys.modules and getattr(sys.modules[module_name], "__file__", None) != key:
        module_name = f"msefpn_plugin_{module_name}"
    spec = importlib.util.spec_from_file_location(module_name, key)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with _importing(path.name, f"plug-in {path}", "fix it"):
            spec.loader.exec_module(module)
    except UserError:
        sys.modules.pop(module_name, None)
        _forget(path.name)
        raise
    _LOADED[key] = (stat.st_mtime_ns, stat.st_size)


def _forget(origin: str) -> None:
    for table in _TABLES.values():
        for name in [name for name, plugin in table.items() if plugin.origin == origin]:
            del table[name]


@contextlib.contextmanager
def _importing(origin: str, what: str, how: str) -> Iterator[None]:
    """Note where names come from; turn what goes wrong into one line."""
    _origin.append(origin)
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{what} has a syntax error in line {error.lineno} ({error.msg}): {how}") from None
    except Exception as error:  # a plug-in may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:200]
        place = f"{Path(last.filename).name}:{last.lineno}"
        raise UserError(
            f"{what} cannot be imported ({place}: {type(error).__name__}: {text}): {how}"
        ) from None
    finally:
        _origin.pop()
