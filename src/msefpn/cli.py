"""The command line: one command per public function, its options read from the signature and docstring."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import select
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from msefpn.commands import compare, data, models, predict, train
from msefpn.commands import inspect as inspecting
from msefpn.config import load_recipe
from msefpn.errors import UserError, unknown_name
from msefpn.runs.folder import default_recipe, tells_mistakes
from msefpn.runs.memory import keep_freed_memory

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train.train,
    "evaluate": predict.evaluate,
    "predict": predict.predict,
    "export": models.export,
    "check": data.check,
    "convert": data.convert,
    "split": data.split,
    "cost": compare.cost,
    "ablate": compare.ablate,
    "explain": inspecting.explain,
    "report": inspecting.report,
    "demo": inspecting.demo,
}
_POSITIONAL = {("check", "data"): "?", ("demo", "runs"): "*"}
"""Arguments with a default that are given without a name all the same."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 where a training of a grid or an exported file failed or
    nobody reads what is printed, 2 for a user's mistake, 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _tell(str(error))
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        return _tell(f"'{error.filename}': {error.strerror}")
    except KeyboardInterrupt as error:
        print(f"\n{error}" if str(error) else "\ninterrupted", file=sys.stderr)
        return 130


def _reader_has_gone() -> bool:
    """Whether what is printed goes into a closed pipe, as with `| head`; from then on it goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _tell(mistake: str) -> int:
    """Print a user's mistake as one line, in one process; return the exit code for it."""
    if tells_mistakes():
        print("error:", " ".join(mistake.split()), file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    wants_help = bool({"-h", "--help"} & set(arguments))
    defaults = _recipe_values(arguments) if name == "train" and wants_help else {}
    parser = command_parser(name, defaults)
    if wants_help:
        print(parser.format_help(), end="")
        return 0
    given = vars(parser.parse_args(arguments[1:]))
    keep_freed_memory()
    result = COMMANDS[name](**given)
    if name == "ablate":
        return int(any("failed" in cell for row in result for cell in row["cells"]))
    if name == "export":
        return int(not result["passed"])
    return result.exit_code if name == "check" else 0


def command_parser(name: str, defaults: dict[str, Any]) -> argparse.ArgumentParser:
    """Build the parser of a command; what is not given is absent from the result.

    Args:
        name: key of `COMMANDS`.
        defaults: values to show in the help instead of the signature's.
    """
    function = COMMANDS[name]
    summary, texts = read_docstring(function)
    parser = _Parser(
        prog=f"msefpn {name}",
        description=summary,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=100),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(function, localns=_late_types())
    for argument in inspect.signature(function).parameters.values():
        kind, several = _kind(hints[argument.name])
        default = defaults.get(argument.name, argument.default)
        text = texts[argument.name].replace("%", "%%")
        if not any(default is nothing for nothing in (None, False, inspect.Parameter.empty)):
            text += f" (default: {default})"
        nargs = _POSITIONAL.get((name, argument.name), "+" if several else None)
        if argument.default is inspect.Parameter.empty or (name, argument.name) in _POSITIONAL:
            parser.add_argument(argument.name, type=kind, nargs=nargs, help=text)
        elif kind is bool:
            parser.add_argument(_flag(argument.name), action="store_true", help=text)
        else:
            metavar = argument.name.rpartition("_")[2].upper()
            parser.add_argument(_flag(argument.name), type=kind, nargs=nargs, metavar=metavar, help=text)
    return parser


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and argument name -> text."""
    sections = re.split(r"\n(?=\w+:\n)", inspect.getdoc(function) or "")
    about = next((section for section in sections if section.startswith("Args:")), "")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", about, re.MULTILINE)
    return sections[0].split("\n\n")[0], {name: " ".join(text.split()) for name, text in entries}


def _overview() -> str:
    lines = [
        f"  {name:10}{read_docstring(function)[0].splitlines()[0]}" for name, function in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: msefpn COMMAND [OPTIONS]",
            "",
            "Object detection with MSE-FPN and other feature pyramids.",
            "",
            *lines,
            "",
            "msefpn COMMAND --help explains the options. Without data, msefpn train draws its own.",
        ]
    )


def _recipe_values(arguments: Sequence[str]) -> dict[str, Any]:
    """The values of the recipe that these arguments choose."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "data", "train-json"):
        parser.add_argument(f"--{name}")
    chosen, _ = parser.parse_known_args(arguments)
    builtin = not (chosen.data or chosen.train_json)
    return vars(load_recipe(chosen.recipe or default_recipe(builtin)))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind(hint: Any) -> tuple[Callable[[str], Any], bool]:
    """The type of one value, and whether there are several: the first of a union, within a sequence."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(options[0]) is not None:
        return _kind(typing.get_args(options[0])[0])[0], True
    kind: Callable[[str], Any] = options[0]
    return kind, False


def _late_types() -> dict[str, Any]:
    """Stand-ins for the return types that the front modules import for the type checker only."""
    late = ("Check", "Conversion", "Detector", "Division")
    return {"Path": Path, "Sequence": Sequence, **dict.fromkeys(late, Any)}
