"""The rules of the house: imports point one way, one neck contract, the configuration is the constructor.

Each rule is a function from a source tree to its violations; it runs over the real tree, where it must find
none, and over small trees with one planted violation, where it must find that.
"""

import ast
import dataclasses
import functools
import graphlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from msefpn.config import Config, load_recipe, recipe_names
from msefpn.errors import UserError
from msefpn.models import build, check_neck_name
from msefpn.necks import NECKS, Neck
from msefpn.plugins import known as known_plugins
from tests import ROOT

SOURCE = ROOT / "src" / "msefpn"

FLOORS: list[set[str]] = [
    {"plain", "structures", "necks", "version"},
    {"errors"},
    {"reading"},
    {"links", "options", "plugins", "pretrained", "static", "writing"},
    {"config", "places"},
    {"checkpoint", "names", "remote"},
    {"data", "models", "metrics", "html"},
    {"runs"},
    {"inference"},
    {"training", "prediction", "exporting", "reporting", "explaining", "importing", "web"},
    {"ablation"},
    {"commands"},
    {"testing"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""The parts of the package from the ground up: a part may import those of lower floors, and of its own none.

`ablation` trains, so it stands on `training`; `testing` is for users' own tests, and stands on what it tests.
"""
APART = {
    "necks": set[str](),
    "structures": set[str](),
    "data": {"errors", "structures", "config", "links", "plugins", "reading", "writing"},
    "models": {
        *("errors", "structures", "config", "plugins", "places", "pretrained", "reading", "static"),
        *("checkpoint", "necks", "plain", "writing"),
    },
    "metrics": {"errors", "structures", "config", "reading"},
    "html": {"errors"},
}
"""Parts that may import less than all below."""
NO_HEAVY_IMPORT = {"__init__", "__main__", "checkpoint", "cli", "commands", "config", "errors", "plugins"}
NO_HEAVY_IMPORT |= {"links", "places", "plain", "pretrained", "reading", "remote"}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "pytorch_lightning",
    "faster_coco_eval",
}
EXTRAS = {
    "supervision": set[str](),
    "scipy": set[str](),
    "matplotlib": set[str](),
    "av": {"inference/video.py"},
    "tensorboard": set[str](),
    "hotcoco": {"metrics/coco.py"},
    "fsspec": set[str](),
    "s3fs": set[str](),
    "gcsfs": set[str](),
    "wandb": set[str](),
    "mlflow": set[str](),
    "trackio": set[str](),
    "onnx": set[str](),
    "onnxruntime": set[str](),
    "openvino": set[str](),
    "pyarrow": {f"prediction/shards/{name}.py" for name in ("job", "journal", "table")},
    "ray": set[str](),
    "fastapi": set[str](),
    "h11": {"web/server.py"},
    "uvicorn": {"web/server.py"},
}
"""Packages of extras, and the files that import them at load: these are imported late, or cope without."""
LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
ENGINE = (Path("training/lightning.py"), Path("training/engine.py"))
"""The only files that import Lightning."""


def may_import(part: str) -> set[str] | None:
    """The parts that a part may import; None for a part that has no floor."""
    if part in APART:
        return APART[part]
    below: set[str] = set()
    for floor in FLOORS:
        if part in floor:
            return below
        below |= floor
    return None


class Import(NamedTuple):
    """One import statement's target."""

    part: str
    """Part of the package that imports: a subpackage or a top-level module."""
    file: Path
    """Importing file, relative to the package."""
    line: int
    module: str
    """Absolute name of the imported module; `.` in front of a relative one."""
    at_load: bool
    """Runs when the file is imported: neither inside a function nor for type checkers only."""


parsed: Callable[[str], ast.Module] = functools.cache(ast.parse)  # several rules walk a file's tree


def imports(source: Path) -> Iterator[Import]:
    """Yield every import in every file of a package."""
    for path in sorted(source.rglob("*.py")):
        file = path.relative_to(source)
        part = file.parts[0].removesuffix(".py")
        tree = parsed(path.read_text(encoding="utf-8"))
        lazy = {id(inner) for node in ast.walk(tree) if _is_lazy(node) for inner in ast.walk(node)}
        for node in ast.walk(tree):
            for module in _targets(node, source):
                yield Import(part, file, getattr(node, "lineno", 0), module, id(node) not in lazy)


def _necks_may(item: Import) -> set[str]:
    """Torch; and torchvision's operators by option, imported when they are asked for."""
    return {"torch"} if item.at_load else {"torch", "torchvision"}


def _is_lazy(node: ast.AST) -> bool:
    type_checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return type_checking or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def _targets(node: ast.AST, source: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = "." * node.level + (node.module or "")
    inner = source.joinpath(*base.split(".")[1:])
    # `from package import name` imports a module where `name` is one
    return [
        f"{base}.{alias.name}" if _is_module(inner / alias.name) and base.startswith("msefpn") else base
        for alias in node.names
    ]


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def wrong_directions(source: Path) -> list[str]:
    """Rule 1: imports point one way."""
    found = []
    for item in imports(source):
        where = f"{item.file}:{item.line} imports {item.module}"
        top, *rest = item.module.split(".")
        allowed = may_import(item.part)
        if allowed is None:
            found.append(f"{item.file}: '{item.part}' has no floor in FLOORS")
        elif top == "":
            found.append(f"{where}: write the absolute name")
        elif top == "msefpn":
            target = rest[0] if rest else "__init__"
            if target != item.part and target not in allowed:
                found.append(f"{where}: {item.part} may import {sorted(allowed)}")
        elif top in LIGHTNING and item.file not in ENGINE:
            found.append(f"{where}: only {ENGINE[0]} and {ENGINE[1]} may")
        elif item.part == "necks" and top not in _necks_may(item) | sys.stdlib_module_names:
            found.append(f"{where}: necks need torch only")
        elif item.at_load and top in HEAVY and item.part in NO_HEAVY_IMPORT:
            found.append(f"{where} at load: import it inside the function that needs it")
        elif item.at_load and top in EXTRAS and item.file.as_posix() not in EXTRAS[top]:
            found.append(f"{where} at load: it belongs to an extra, import it inside the function")
    return found


def cycles(source: Path) -> list[str]:
    """Rule 1: no two files import each other while they load."""
    graph: dict[str, set[str]] = {}
    for item in imports(source):
        name = ".".join(["msefpn", *item.file.with_suffix("").parts]).removesuffix(".__init__")
        if item.at_load and item.module.startswith("msefpn") and item.module != name:
            graph.setdefault(name, set()).add(item.module)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def config_takers(source: Path) -> list[str]:
    """Rule 3: a Config goes to the functions of models that build, load and save, and to the verbs."""
    found = []
    for path in sorted(source.rglob("*.py")):
        file = path.relative_to(source)
        if file.parts[0] not in ("necks", "data", "models", "metrics"):
            continue
        tree = parsed(path.read_text(encoding="utf-8"))
        allowed = [node for node in tree.body if file.parts[0] == "models"]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node not in allowed:
                args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                found += [
                    f"{file}:{node.lineno} {node.name} takes a Config"
                    for arg in args
                    if arg.annotation and "Config" in _names(arg.annotation)
                ]
    return found


def _names(annotation: ast.expr) -> set[str]:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    named = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    return named | {node.attr for node in ast.walk(annotation) if isinstance(node, ast.Attribute)}


def oversized(source: Path) -> list[str]:
    """Files of at most 400 lines, functions of at most 60 under their docstring, recipes of at most 25."""
    found = []
    for path in sorted(source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > 400:
            found.append(f"{path.name} has {lines} lines")
        for node in ast.walk(parsed(text)):
            if isinstance(node, ast.FunctionDef) and _body_lines(node) > 60:
                found.append(f"{path.name}:{node.lineno} {node.name} is too long")
    for path in sorted(source.rglob("recipes/*.yaml")):
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 25:
            found.append(f"{path.name} has {lines} lines")
    return found


VERBS = {"build", "evaluate", "export", "load", "main", "predict", "stream", "train"}
"""Functions that a public one of the same name calls, in another module: what is done, and its options."""


def same_names(source: Path) -> list[str]:
    """A public class, function or constant has one meaning: no two modules define the same name."""
    homes: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        for node in parsed(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else []
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_") and len(name) > 1 and name not in VERBS:
                    homes.setdefault(name, []).append(path.relative_to(source).as_posix())
    return [f"{name}: {', '.join(places)}" for name, places in homes.items() if len(places) > 1]


def _body_lines(function: ast.FunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("rule", [wrong_directions, cycles, config_takers, oversized, same_names])
def test_source_keeps_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(SOURCE) == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_no_oversized_file_beside_the_source(folder: str) -> None:
    assert oversized(ROOT / folder) == []


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 61
PLANTED = [
    (wrong_directions, "necks/bad.py", "import numpy", "necks need torch only"),
    (wrong_directions, "necks/bad.py", "import torchvision", "necks need torch only"),
    (wrong_directions, "necks/bad.py", "from msefpn.errors import UserError", "necks may import []"),
    (wrong_directions, "data/bad.py", "from msefpn.models import build", "data may import"),
    (wrong_directions, "models/bad.py", "from msefpn.data.coco import CocoData", "models may import"),
    (wrong_directions, "models/bad.py", "from msefpn import data", "imports msefpn.data"),
    (wrong_directions, "metrics/bad.py", "def f():\n    import msefpn.models", "metrics may import"),
    (wrong_directions, "reporting/bad.py", "from msefpn.training import plan", "reporting may import"),
    (wrong_directions, "inference/bad.py", "from msefpn.exporting import plan", "inference may import"),
    (wrong_directions, "structures.py", "from msefpn.config import Config", "structures may import []"),
    (wrong_directions, "training/bad.py", "from msefpn.commands import x", "training may import"),
    (
        wrong_directions,
        "training/bad.py",
        "import pytorch_lightning as pl",
        "only training/lightning.py and training/engine.py may",
    ),
    (wrong_directions, "commands/bad.py", "import torch.nn", "at load"),
    (wrong_directions, "cli.py", "if 1:\n    from torchvision import ops", "at load"),
    (wrong_directions, "prediction/bad.py", "import av", "belongs to an extra"),
    (wrong_directions, "data/bad.py", "from . import coco", "absolute name"),
    (wrong_directions, "tools/bad.py", "import os", "has no floor"),
    (cycles, "data/bad.py", "from msefpn.data.back import x", "msefpn.data.bad"),
    (config_takers, "models/bad.py", "class A:\n    def __init__(self, c: Config): ...", "__init__ takes"),
    (config_takers, "models/bad.py", "def f():\n    def g(c: 'Config | None'): ...", "g takes"),
    (config_takers, "necks/bad.py", "def f(*, c: config.Config): ...", "f takes"),
    (oversized, "data/bad.py", "x = 1\n" * 401, "bad.py has 401 lines"),
    (oversized, "data/bad.py", LONG_FUNCTION, "f is too long"),
    (oversized, "recipes/bad.yaml", "a: 1\n" * 26, "bad.yaml has 26 lines"),
    (same_names, "data/bad.py", "class Neck: ...", "Neck"),
]


@pytest.mark.parametrize(("rule", "file", "text", "message"), PLANTED)
def test_rule_finds_planted_violation(
    rule: Callable[[Path], list[str]], file: str, text: str, message: str, tmp_path: Path
) -> None:
    good = {
        "data/back.py": "from msefpn.data.bad import y",
        "training/lightning.py": "import pytorch_lightning",
        "commands/train.py": "def train():\n    import torch",
        "training/train.py": "def train(): ...",
        "models/build.py": "def build(c: Config): ...",
        "necks/base.py": "class Neck: ...",
        "necks/fpn.py": "import math\nfrom torch import nn\nfrom msefpn.necks.base import Neck",
        "recipes/good.yaml": "a: 1\n" * 25,
    }
    _write_tree(tmp_path, good)
    assert rule(tmp_path) == []
    _write_tree(tmp_path, {file: text})
    violations = rule(tmp_path)
    assert len(violations) == 1
    assert message in violations[0]


def _write_tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("msefpn", HEAVY | {"yaml", "numpy"}),
        ("msefpn.cli", HEAVY | {"numpy", "rich"} | set(EXTRAS)),
        ("msefpn.necks", (HEAVY | {"numpy", "PIL"} | set(EXTRAS)) - {"torch"}),
    ],
)
def test_import_loads_nothing_heavy(module: str, banned: set[str]) -> None:
    # torch itself loads numpy where it is installed, so only what `import torch` does not load counts
    before = "import torch; " if "torch" not in banned else ""
    code = (
        f"import sys; {before}had = set(sys.modules); import {module}; print(*sorted(set(sys.modules) - had))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert "msefpn" in loaded
    assert loaded & banned == set()


@pytest.mark.parametrize("name", NECKS)
def test_neck_is_documented_and_keeps_the_signature(name: str) -> None:
    neck = NECKS[name]
    assert issubclass(neck, Neck)
    assert neck is not Neck
    assert "Args:" in (neck.__doc__ or "")
    first = [*inspect.signature(neck).parameters.values()][:3]
    assert [p.name for p in first] == ["in_channels", "in_strides", "out_channels"]
    assert first[2].default == 256
    paper = inspect.getdoc(sys.modules[neck.__module__]) or ""
    assert any(word in paper for word in ("arXiv", "Sci. Rep.", "doi")), "its file must cite the paper"


@pytest.mark.parametrize(
    ("field", "known"), [("neck", NECKS), ("detector", known_plugins("detector")), ("backbone", ["resnet50"])]
)
def test_unknown_name_prints_the_known_ones(field: str, known: Collection[str]) -> None:
    changed: dict[str, Any] = {field: "resnet5O"}
    config = dataclasses.replace(Config(backbone="mobilenetv2_100"), **changed)
    with pytest.raises(UserError, match="resnet5O") as caught:
        build(config, ["thing"])
    assert all(name in str(caught.value) for name in known)
    assert "\n" not in str(caught.value)


def test_every_recipe_resolves() -> None:
    assert "quickstart" in recipe_names()
    for name in recipe_names():
        config = load_recipe(name)
        check_neck_name(config.neck)
        assert config.detector in known_plugins("detector")
