"""No file is read in a way that executes what is in it, but for those that SECURITY.md names."""

import ast
from pathlib import Path

import pytest

from tests.test_project_rules import SOURCE

RUNS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"}
RUNS |= {"eval", "exec", "joblib.load", "dill.load", "runpy.run_path"}
"""Calls that execute what they read."""


def unsafe_reads(source: Path) -> list[str]:
    """Calls of `RUNS`, and of torch.load, numpy.load and yaml.load where they may execute."""
    found = []
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {item.arg: ast.unparse(item.value) for item in node.keywords}
            given |= {str(place): ast.unparse(item) for place, item in enumerate(node.args)}
            unsafe = name in RUNS
            unsafe |= name == "yaml.load" and given.get("1") not in ("yaml.BaseLoader", "_PlainLoader")
            unsafe |= name == "torch.load" and given.get("weights_only") != "True"
            unsafe |= name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False"
            if unsafe:
                found.append(f"{path.relative_to(source)}:{node.lineno} calls {name}")
    return found


def test_source_reads_safely() -> None:
    assert unsafe_reads(SOURCE) == []


@pytest.mark.parametrize(
    "text",
    [
        "pickle.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
    ],
)
def test_rule_finds_planted_violation(text: str, tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("torch.load(f, weights_only=True)\nnp.load(f)\nyaml.safe_load(f)\n")
    assert unsafe_reads(tmp_path) == []
    (tmp_path / "bad.py").write_text(text)
    assert len(unsafe_reads(tmp_path)) == 1
