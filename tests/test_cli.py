"""The command line says what it does, with the values that would be used."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import msefpn
from msefpn import api
from msefpn.cli import COMMANDS, command_parser, main, read_docstring
from msefpn.config import load_recipe
from tests import TINY


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, name)
    _, explained = read_docstring(COMMANDS[name])
    for argument in inspect.signature(COMMANDS[name]).parameters:
        assert len(explained[argument]) > 5
        assert explained[argument].split(":")[0] in text
        assert f"--{argument.replace('_', '-')}" in text or f"{argument} " in text


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        ((), "quickstart"),
        (("--data", "somewhere"), "faster_rcnn_r50_mse_fpn_1x"),
        (("--recipe", str(TINY)), str(TINY)),
    ],
)
def test_train_help_shows_the_values_of_the_recipe(
    arguments: tuple[str, ...], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(capsys, "train", *arguments)
    config = load_recipe(recipe)
    for name in ("backbone", "size", "epochs", "batch", "lr", "seed"):
        assert f"(default: {getattr(config, name)})" in text.split(f"--{name} ", 2)[2][:200]


@pytest.mark.parametrize("order", [1, -1])
def test_options_override_the_recipe_in_any_order(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def train(**given: Any) -> None:
        seen.update(given)

    train.__doc__, train.__signature__ = api.train.__doc__, inspect.signature(api.train)  # type: ignore[attr-defined]
    train.__annotations__ = api.train.__annotations__
    monkeypatch.setitem(train.__globals__, "Path", Path)
    monkeypatch.setitem(COMMANDS, "train", train)
    pairs = [("--recipe", "r.yaml"), ("--epochs", "3"), ("--lr", "1e-3"), ("--size", "320")]
    main(["train", *(word for pair in pairs[::order] for word in pair), "--resume"])
    assert seen == {"recipe": "r.yaml", "epochs": 3, "lr": 1e-3, "size": "320", "resume": True}


def test_predict_takes_several_sources() -> None:
    given = command_parser("predict", {}).parse_args(["run", "a.jpg", "b", "--score", "0.5"])
    assert vars(given) == {"run": "run", "sources": ["a.jpg", "b"], "score": 0.5}


def test_a_path_that_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "locked/data")

    monkeypatch.setattr(Path, "is_dir", refused)
    assert main(["check", "locked/data"]) == 2
    assert capsys.readouterr().err == "error: 'locked/data': Permission denied\n"


def test_a_reader_that_goes_away_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "msefpn", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_help_and_import_need_no_torch() -> None:
    program = (
        "import sys, msefpn\n"
        "from msefpn.cli import main\n"
        "main(['train', '--help'])\n"
        "heavy = {'torch', 'numpy', 'timm', 'pytorch_lightning', 'supervision', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert msefpn.MSEFPN.__name__ == 'MSEFPN'\n"
        "assert 'torch' in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_the_package_has_what_it_names() -> None:
    assert all(callable(getattr(msefpn, name)) for name in msefpn.__all__)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = msefpn.Nothing


def test_commands_are_functions_of_the_package() -> None:
    assert all(getattr(msefpn, name) is function for name, function in COMMANDS.items())


def test_check_through_the_command(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tiny_set), "--size", "320"]) == 0
    assert "ready to train" in capsys.readouterr().out
    (tiny_set.parent / "empty").mkdir(exist_ok=True)
    assert main(["check", "--train-json", str(tiny_set / "missing.json")]) == 2
