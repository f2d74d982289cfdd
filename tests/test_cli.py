"""The command line says what it does, with the values that would be used."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import msefpn
from msefpn.cli import COMMANDS, PYTHON_ONLY, command_parser, main, read_docstring
from msefpn.commands.arguments import options_of
from msefpn.config import Config, load_recipe, parse_settings
from msefpn.errors import UserError
from tests import TINY


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, name)
    _, explained = read_docstring(COMMANDS[name])
    fields = options_of(COMMANDS[name])
    for argument in inspect.signature(COMMANDS[name]).parameters:
        if argument in PYTHON_ONLY or (argument in fields and not fields[argument].metadata["flag"]):
            continue
        assert len(explained[argument]) > 5
        assert explained[argument].split(":")[0] in text
        assert f"--{argument.replace('_', '-')}" in text or f"{argument} " in text
    assert "--plugin" in text


def test_every_setting_has_a_flag_or_is_reached_by_set(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "train")
    for item in dataclasses.fields(Config):
        assert f"--{item.name.replace('_', '-')}" in text or not item.metadata["flag"]
    for setting, key in (("neck_options.gate=none", "neck_options"), ("milestones=[1, 2]", "milestones")):
        assert key in parse_settings([setting])
    assert parse_settings(["neck_options.a.b=1e-3", "neck_options.c=[x]"]) == {
        "neck_options": {"a": {"b": "1e-3"}, "c": ["x"]}
    }


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("epoch=3", "unknown key 'epoch': did you mean 'epochs'"),
        ("epochs", "write key=value"),
        ("epochs=many", "epochs is 'many', but must be of type int"),
        ("neck_options=3", "neck_options is 3, but must be of type dict"),
        ("epochs.a=3", "epochs is {'a': 3}, but must be of type int"),
        ("neck_options.a=[1", "not valid YAML"),
    ],
)
def test_a_wrong_setting(setting: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        parse_settings([setting])


def test_an_option_and_a_setting_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epochs", "3", "--set", "epochs=4", "--out", str(tmp_path / "run")]) == 2
    assert "epochs is given twice, as 3 and with --set as 4" in capsys.readouterr().err


def test_an_option_that_is_misspelt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epoch", "3"]) == 2
    assert "unknown option '--epoch': did you mean '--epochs'?" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"msefpn {msefpn.__version__}\n"


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        ((), "faster_rcnn_r50_mse_fpn_1x"),
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
        assert f"(default: {getattr(config, name)}" in text.split(f"--{name} ", 2)[2][:200]
    assert ("without data test_resnet" in text) == (arguments == ())


@pytest.mark.parametrize("order", [1, -1])
def test_options_override_the_recipe_in_any_order(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def train(**given: Any) -> None:
        seen.update(given)

    for name in ("__doc__", "__module__", "__signature__", "__options__", "__annotations__"):
        setattr(train, name, getattr(msefpn.train, name))
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

    monkeypatch.setattr(Path, "stat", refused)
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
    assert all(getattr(msefpn, function.__name__) is function for function in COMMANDS.values())


def test_check_through_the_command(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tiny_set), "--size", "320"]) == 0
    assert "ready to train" in capsys.readouterr().out
    (tiny_set.parent / "empty").mkdir(exist_ok=True)
    assert main(["check", "--train-json", str(tiny_set / "missing.json")]) == 2
