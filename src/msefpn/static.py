"""The values of a configuration in Python, read without running it.

Literals, names of literals, `dict(...)`, `list(...)`, `tuple(...)`, arithmetic on numbers, texts and lists,
indices, and `_base_` files, merged as mmcv and mmengine merge them. What is computed otherwise becomes
`Computed`, which is an error only where its value is needed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msefpn.errors import UserError
from msefpn.reading import read_bytes, real_path, unreadable

_MAX_BYTES = 1 << 21
"""Largest file that is read."""
_MAX_BASES = 20
"""Files on top of each other."""
_MAX_ITEMS = 10_000
"""Longest list or text that multiplication makes."""
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_CALLS: Mapping[str, Callable[..., Any]] = {"dict": dict, "list": list, "tuple": tuple}


@dataclass(frozen=True)
class Computed:
    """A value that only running the file gives."""

    file: Path
    line: int
    text: str

    def __repr__(self) -> str:
        return f"<{self.text}>"


class _NotLiteralError(Exception):
    """An expression whose value cannot be read."""


@dataclass
class StaticFile:
    """The values of a file, those of its bases below them."""

    values: dict[str, Any] = field(default_factory=dict)
    """By name. Values are literals, dictionaries, lists and tuples of such, or `Computed`."""
    used: set[str] = field(default_factory=set)
    """Names that other values are made of."""


def read_static(path: Path, below: tuple[Path, ...] = ()) -> StaticFile:
    """Read a file and its bases.

    Args:
        path: the file.
        below: the files that it is a base of.

    Raises:
        UserError: a file is missing, is not Python, or imports its values.
    """
    if real_path(path) in below or len(below) > _MAX_BASES:
        raise UserError(f"{path}: its _base_ files are based on each other: correct _base_")
    return _read(_parse(path), path, below)


def read_static_text(text: str, path: Path) -> StaticFile:
    """Read the values of a text, which `path` holds for messages. Raises UserError as `read_static` does."""
    if len(text) > _MAX_BYTES:
        raise UserError(f"{path} holds a text that is too large for a configuration")
    return _read(_parsed(text, path), path, ())


def _read(tree: ast.Module, path: Path, below: tuple[Path, ...]) -> StaticFile:
    reader = _Reader(path)
    bases = StaticFile()
    for node in tree.body:
        if isinstance(node, ast.Assign) and _names_of(node.targets) == ["_base_"]:
            for base in _base_paths(reader.value(node.value), path):
                found = read_static(base, (*below, real_path(path)))
                bases.values = merged(bases.values, found.values, str(path))
                bases.used |= found.used
    reader.bases = bases.values
    for node in tree.body:
        reader.run(node)
    own = {name: value for name, value in reader.values.items() if not name.startswith("_")}
    return StaticFile(merged(bases.values, own, str(path)), bases.used | reader.used)


def _parse(path: Path) -> ast.Module:
    try:
        return _parsed(read_bytes(path, _MAX_BYTES), path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: copy the configuration with its _base_ files") from None
    except OSError as error:
        raise unreadable(path, error, "name the .py file of a configuration") from None


def _parsed(text: str | bytes, path: Path) -> ast.Module:
    try:
        return ast.parse(text, filename=str(path))
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{path}{where} is not valid Python: {' '.join(str(error).split())[:100]}") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{path} is nested too deeply for a configuration") from None


def _base_paths(value: Any, path: Path) -> list[Path]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: _base_ is {value!r}, but must be file names: write them out")
    for name in names:
        if "::" in name:
            raise UserError(
                f"{path}: the base {name} is inside an installed package: copy that file beside this one, "
                "and name it in _base_"
            )
    return [path.parent / name for name in names]


def merged(base: Any, over: Any, where: str) -> Any:
    """Put values over those of a base: dictionaries key by key, `_delete_=True` drops the base's.

    Raises:
        UserError: a dictionary is put over something else, or an index names no item.
    """
    if not isinstance(over, dict):
        return over
    own = {key: value for key, value in over.items() if key != "_delete_"}
    if isinstance(base, list) and own and all(str(key).isdigit() for key in own):
        items = list(base)
        for key, value in own.items():
            if int(key) >= len(items):
                raise UserError(f"{where}: item {key} is put over a list of {len(items)}: correct the index")
            items[int(key)] = merged(items[int(key)], value, where)
        return items
    if over.get("_delete_") or not isinstance(base, dict):
        return {key: merged(None, value, where) for key, value in own.items()}
    return base | {key: merged(base.get(key), value, where) for key, value in own.items()}


class _Reader:
    """Runs the assignments of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.bases: dict[str, Any] = {}
        self.used: set[str] = set()

    def run(self, node: ast.stmt) -> None:
        """Carry out a statement; what it may change in another way than read here becomes `Computed`."""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.With) and "read_base" in ast.unparse(node.items[0]):
            raise UserError(
                f"{self.path} imports its bases, which takes running it: give the resolved file that "
                "mmdetection writes into its work directory"
            )
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self.assign(node.targets[0], self.value(node.value), node)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self.assign(node.target, self.value(node.value), node)
        else:
            for name in _changed(node):
                self.values[name] = Computed(self.path, node.lineno, _text(node))

    def assign(self, target: ast.expr, value: Any, node: ast.stmt) -> None:
        """Set a name, or an item of one."""
        if isinstance(target, ast.Name):
            self.values[target.id] = value
            return
        if isinstance(target, ast.Subscript):
            try:
                self._read(target.value)[self._read(target.slice)] = value
                return
            except (_NotLiteralError, LookupError, TypeError):
                pass
        for name in _changed(node):
            self.values[name] = Computed(self.path, node.lineno, _text(node))

    def value(self, node: ast.expr) -> Any:
        """The value of an expression, or `Computed`; inside dictionaries and lists each item for itself."""
        try:
            return self._read(node)
        except (_NotLiteralError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError):
            return Computed(self.path, node.lineno, _text(node))

    def _read(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, (ast.List, ast.Tuple)):
            items = [self.value(item) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        if isinstance(node, ast.Dict):
            return self._pairs(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            return self._read(node.value)[self._read(node.slice)]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            number = self._read(node.operand)
            return -number if isinstance(node.op, ast.USub) else +number
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return self._combined(node)
        return self._of_base(node)

    def _named(self, name: str) -> Any:
        if name not in self.values:
            raise _NotLiteralError
        self.used.add(name)
        return self.values[name]

    def _pairs(self, node: ast.Dict) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if key is None:
                found |= self._read(item)
            else:
                found[self._read(key)] = self.value(item)
        return found

    def _call(self, node: ast.Call) -> Any:
        if not isinstance(node.func, ast.Name) or node.func.id not in _CALLS or node.func.id in self.values:
            raise _NotLiteralError
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                named |= self._read(keyword.value)
            else:
                named[keyword.arg] = self.value(keyword.value)
        return _CALLS[node.func.id](*(self._read(argument) for argument in node.args), **named)

    def _combined(self, node: ast.BinOp) -> Any:
        left, right = self._read(node.left), self._read(node.right)
        if isinstance(node.op, ast.Mult):
            for one, times in ((left, right), (right, left)):
                if isinstance(one, (str, bytes, list, tuple)) and len(one) * times > _MAX_ITEMS:
                    raise _NotLiteralError
        if isinstance(node.op, ast.Mod) and not isinstance(left, (int, float)):
            raise _NotLiteralError  # a text's formatting, of any width
        if isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 1 << 64:
            raise _NotLiteralError
        return _OPERATORS[type(node.op)](left, right)

    def _of_base(self, node: ast.expr) -> Any:
        """A value of the bases: `_base_.name.name`, and mmcv's `{{_base_.name}}`, two sets to the parser."""
        if isinstance(node, ast.Set) and len(node.elts) == 1:
            inner = node.elts[0]
            return self._of_base(inner.elts[0] if isinstance(inner, ast.Set) else inner)
        if not isinstance(node, ast.Attribute):
            raise _NotLiteralError
        if isinstance(node.value, ast.Name) and node.value.id == "_base_":
            return self.bases[node.attr]
        return self._of_base(node.value)[node.attr]


def _names_of(targets: list[ast.expr]) -> list[str]:
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _changed(node: ast.stmt) -> set[str]:
    """Names that a statement sets, imports, or may change inside."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, (ast.Store, ast.Del)):
            found.add(inner.id)
        elif isinstance(inner, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in inner.names}
        elif isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
            found.add(inner.name)
        elif isinstance(inner, (ast.Subscript, ast.Attribute)):
            part: ast.expr = inner
            while isinstance(part, (ast.Subscript, ast.Attribute, ast.Call)):
                part = part.func if isinstance(part, ast.Call) else part.value
            if isinstance(part, ast.Name):
                found.add(part.id)
    return found


def _text(node: ast.AST) -> str:
    try:
        return " ".join(ast.unparse(node).split())[:60]
    except RecursionError:
        return "a deeply nested expression"
