"""The project's files agree: versions, dependencies, commands, links, the code of the README."""

import ast
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import msefpn
from tests import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = [
    item
    for name, extra in PROJECT["project"]["optional-dependencies"].items()
    for item in extra
    if name != "all"  # the others
]
PINS = re.findall(
    r"^([a-z0-9-]+)==(\S+)((?:.*\\\n)(?: +--hash=sha256:[0-9a-f]{64}.*\n)+)", LOCK, flags=re.MULTILINE
)


def test_lock_pins_every_dependency_with_hashes() -> None:
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"], *EXTRAS]
    names = {re.split(r"[^\w-]", item.lower())[0] for item in wanted}
    assert names <= {name for name, _, _ in PINS}
    assert len(PINS) == len(re.findall(r"^[^\s#]", LOCK, flags=re.MULTILINE)), (
        "a line has no version or no hash"
    )


def test_lock_names_no_index() -> None:
    assert "://" not in LOCK
    assert "index-url" not in LOCK


def test_dependencies_are_those_that_the_source_imports() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"msefpn"}
    packages = importlib.metadata.packages_distributions()
    declared = {re.split(r"[^\w-]", item.lower())[0] for item in PROJECT["project"]["dependencies"]}
    extra = {re.split(r"[^\w-]", item.lower())[0] for item in EXTRAS}
    found = {top: {name.lower().replace("_", "-") for name in packages[top]} for top in tops}
    assert [top for top, names in found.items() if not names & (declared | extra)] == []
    assert declared <= set().union(*found.values())


def test_extra_of_all_names_every_other() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (every,) = extras["all"]
    assert set(re.findall(r"\w+", every)) == {"msefpn", *extras} - {"all"}


def test_bounds_stay_wide() -> None:
    dependencies = [item.partition(";")[0] for item in PROJECT["project"]["dependencies"]]
    upper = {item for item in dependencies if re.search(r"==|<|~=", item)}
    assert upper == {"pytorch-lightning>=2.6.4,<3"}  # 2.6.2 and 2.6.3 were malware
    assert "torch>=2.11" in PROJECT["project"]["dependencies"]
    assert "torchvision>=0.26" in PROJECT["project"]["dependencies"]
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_version_is_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert importlib.metadata.version("msefpn") == msefpn.__version__ == version


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "The msefpn authors" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    assert {"quickstart", "test"} <= set(commands)
    assert all(re.search(rf"^{name}:", makefile, flags=re.MULTILINE) for name in commands)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"])
def test_files_that_a_page_links_exist(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []


def python_blocks(page: str) -> list[str]:
    """Return the Python code of a Markdown page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.stem)
def test_issue_templates_are_valid(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem != "config":
        assert {"name", "description", "body"} <= set(content)
        assert all({"type", "id", "attributes"} <= set(item) for item in content["body"])


def test_neck_of_the_readme_runs() -> None:
    (block,) = (block for block in python_blocks("README.md") if "from msefpn.necks" in block)
    names: dict[str, Any] = {}
    exec(block, names)
    assert [tuple(x.shape[1:]) for x in names["pyramid"]] == [
        (256, 64, 96),
        (256, 32, 48),
        (256, 16, 24),
        (256, 8, 12),
    ]


def build_wheel(source: Path, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_wheel_is_pure_and_holds_the_package_only(tmp_path: Path) -> None:
    wheel = build_wheel(ROOT, tmp_path)
    version = PROJECT["project"]["version"]
    assert wheel.name == f"msefpn-{version}-py3-none-any.whl"
    held = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    package = {
        path.relative_to(source).as_posix()
        for path in (source / "msefpn").rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    about = {f"msefpn-{version}.dist-info/{n}" for n in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert held == package | about | {f"msefpn-{version}.dist-info/licenses/LICENSE"}
    assert "msefpn/py.typed" in held
    assert any(name.startswith("msefpn/recipes/") for name in held)
    assert build_wheel(copied(tmp_path / "copy"), tmp_path / "again").read_bytes() == wheel.read_bytes()


def copied(folder: Path) -> Path:
    """The sources at another place, time and mode: none of it is in a wheel."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    for path in folder.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (10**9, 10**9))
    return folder


PACKAGE = {"name": "a", "version": "1.0"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([PACKAGE | {"vulns": []}], 0, "no known vulnerability; packages looked up: 1"),
        ([PACKAGE | {"vulns": [{"id": "X-1", "fix_versions": ["1.1"]}]}], 1, "a 1.0: X-1, fixed in 1.1"),
        (
            [PACKAGE | {"vulns": []}, {"name": "b", "skip_reason": "?"}],
            1,
            "1 of 2 packages were not audited, b",
        ),
        (None, 1, "error: no package was audited: the advisory service cannot be reached"),
    ],
)
def test_audit_says_what_it_could_not_look_up(found: Any, code: int, said: str) -> None:
    summary = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["summary"]
    got, lines = summary(json.dumps({"dependencies": found}) if found else "")
    assert got == code
    assert len(lines) == 1
    assert said in lines[0]
