"""The command line: one command per public function, its options read from the signature and docstring."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import io
import os
import re
import select
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from msefpn import plugins
from msefpn.commands import compare, data, models, predict, train
from msefpn.commands import inspect as looking
from msefpn.commands import plugins as plugin_commands
from msefpn.commands.arguments import options_of
from msefpn.config import Config, load_recipe
from msefpn.errors import UserError, unknown_name
from msefpn.plain import one_line, printable
from msefpn.runs.folder import default_recipe
from msefpn.runs.memory import keep_freed_memory
from msefpn.runs.signals import interruptible
from msefpn.runs.world import tells_mistakes
from msefpn.version import __version__
from msefpn.writing import FULL

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train.train,
    "evaluate": predict.evaluate,
    "predict": predict.predict,
    "export": models.export,
    "models": models.list_models,
    "import": models.import_file,
    "upgrade": models.upgrade,
    "check": data.check,
    "convert": data.convert,
    "split": data.split,
    "cost": compare.cost,
    "ablate": compare.ablate,
    "explain": looking.explain,
    "report": looking.report,
    "demo": looking.demo,
    "plugins": plugin_commands.list_plugins,
}
_POSITIONAL = {("check", "data"): "?", ("demo", "runs"): "*"}
"""Arguments with a default that are given without a name all the same."""
PYTHON_ONLY = ("callbacks",)
"""Arguments that only Python can give."""
_EMPTY = (None, False, "", (), inspect.Parameter.empty)
"""Defaults that say nothing."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown is not None:
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            raise UserError(
                f"{unknown_name('option', unknown[1].split('=')[0], flags)}; see {self.prog} --help"
            )
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 where a training of a grid or an exported file failed, or the reader of what is printed has gone; 2
    for a user's mistake; 130 for Ctrl-C and SIGTERM.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have all characters
    try:
        with interruptible():
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
        if error.filename is None and error.errno not in FULL:
            raise
        place = "" if error.filename is None else f"'{error.filename}': "
        return _tell(f"{place}{error.strerror}{': free some space' if error.errno in FULL else ''}")
    except KeyboardInterrupt as error:
        if tells_mistakes():
            print(f"\n{printable(str(error)) or 'interrupted'}", file=sys.stderr)
        return 130


def _reader_has_gone() -> bool:
    """Whether what is printed goes into a closed pipe, as with `| head`; from then on it goes nowhere."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not poll.poll(0):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _tell(mistake: str) -> int:
    """Print a user's mistake as one line, in one process; return the exit code for it."""
    if tells_mistakes():
        print("error:", one_line(mistake), file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name = arguments[0]
    if name in ("-V", "--version"):
        print(f"msefpn {__version__}")
        return 0
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    wants_help = bool({"-h", "--help"} & set(arguments))
    parser = command_parser(name, _recipe_values(name, arguments) if wants_help else {})
    if wants_help:
        print(printable(parser.format_help()), end="")
        return 0
    given = vars(parser.parse_args(arguments[1:]))
    plugins.load(given.pop("plugin", ()))
    keep_freed_memory()
    result = COMMANDS[name](**given)
    return int(getattr(result, "exit_code", 0))


def command_parser(name: str, defaults: dict[str, str]) -> argparse.ArgumentParser:
    """Build the parser of a command; what is not given is absent from the result.

    Args:
        name: key of `COMMANDS`.
        defaults: texts to show in the help as the defaults of options that have none in the signature.
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
    hints = _hints(function)
    for argument in inspect.signature(function).parameters.values():
        field = options_of(function).get(argument.name)
        if argument.name in PYTHON_ONLY or (field is not None and not field.metadata["flag"]):
            continue
        kind, several = _kind(hints.get(argument.name, argument.annotation))
        if field is not None and field.metadata["words"]:
            kind = _number_or_word(field.metadata["words"])
        default = defaults.get(argument.name, argument.default if field is None else _default(field))
        text = texts[argument.name].replace("%", "%%")
        if not any(default is nothing for nothing in _EMPTY):
            text += f" (default: {default})"
        nargs = _POSITIONAL.get((name, argument.name), "+" if several else None)
        if argument.default is inspect.Parameter.empty or (name, argument.name) in _POSITIONAL:
            parser.add_argument(argument.name, type=kind, nargs=nargs, help=text)
        elif kind is bool:
            recipes = field is not None and _is_configured(field)  # one may have set it
            action: Any = argparse.BooleanOptionalAction if recipes else "store_true"
            parser.add_argument(_flag(argument.name), action=action, help=text)
        else:
            metavar = argument.name.rpartition("_")[2].upper()
            parser.add_argument(_flag(argument.name), type=kind, nargs=nargs, metavar=metavar, help=text)
    about = "file or module with plug-ins, may be repeated"
    parser.add_argument("--plugin", action="append", metavar="FILE", help=about)
    return parser


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of an option; a configuration's is the recipe's to say."""
    return None if _is_configured(field) else _shown(field.default)


def _is_configured(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is one of `Config`, whose values are the recipe's to say."""
    return Config.__dataclass_fields__.get(field.name) is field


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
            "       msefpn --version",
            "",
            "Object detection with MSE-FPN and other feature pyramids.",
            "",
            *lines,
            "",
            "msefpn COMMAND --help explains the options. Without data, msefpn train draws its own.",
        ]
    )


def _recipe_values(name: str, arguments: Sequence[str]) -> dict[str, str]:
    """The defaults that these arguments lead to; both, where data that is not named yet decides."""
    if name != "train":
        return {}
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in ("recipe", "data", "train-json"):
        parser.add_argument(f"--{option}")
    chosen, _ = parser.parse_known_args(arguments)
    own = vars(load_recipe(chosen.recipe or default_recipe(builtin=False)))
    texts = {key: _shown(value) for key, value in own.items()}
    if chosen.recipe is None and not (chosen.data or chosen.train_json):
        builtin = vars(load_recipe(default_recipe(builtin=True)))
        for key, text in texts.items():
            if builtin[key] != own[key]:
                texts[key] = f"{text}; without data {_shown(builtin[key])}"
    return texts


def _shown(value: Any) -> str:
    if value is None or value is False:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind(hint: Any) -> tuple[Callable[[str], Any], bool]:
    """The type of one value, and whether there are several: the first of a union, within a sequence."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if typing.get_origin(options[0]) is not None:
        return _kind(typing.get_args(options[0])[0])[0], True
    kind: Callable[[str], Any] = str if options[0] is Any else options[0]
    return kind, False


def _number_or_word(words: dict[str, int]) -> Callable[[str], Any]:
    """The type of an option that is a whole number or a word for one."""

    def kind(text: str) -> int | str:
        return text if text in words else int(text)

    kind.__name__ = f"number or {' or '.join(words)}"
    return kind


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's own arguments; what it returns may be known to the type checker only."""
    arguments = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    home = vars(sys.modules[function.__module__])
    return typing.get_type_hints(types.SimpleNamespace(__annotations__=arguments), home)
