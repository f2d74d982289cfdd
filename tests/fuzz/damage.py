"""Damage to the files of a folder, drawn from a seed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.5, 1e-320, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "0", "1e400", "nan", "person", "../../x.png"),
    *("/etc/passwd", "a\nb", "\x00", "\ud800", "=1+1", "\x1b[31m", "x" * 5000, [], [None], [[[[1]]]]),
    *({}, {"a": 1}, {"": {}}, [1, 2], [1, 2, 3, 4], [-5, -5, 3, 3], [1e9, 1e9, 1, 1], ["a", "b", "c", "d"]),
)
"""Values that do not belong where they are put, or do."""
WORDS = (
    *(
        "&a [*a]",
        "!!python/object:os.system x",
        "2024-01-01",
        "~",
        "[",
        "{",
        '"\\x"',
        "\t",
        "- -",
        "? :",
        "*",
    ),
    *(
        "<!DOCTYPE x>",
        "<a>" * 300,
        "</object>",
        "&#0;",
        "nan",
        "-0",
        "1e999",
        "\x00",
        "\ufffe",
        "\u202e",
        "[" * 900,
    ),
)
"""Pieces of text that confuse a reader of YAML, XML or plain lines."""


def damage(root: Path, rng: random.Random) -> bool:
    """Damage one or two files of a folder.

    Returns:
        Whether all records of the labels are still there, with other values at most.
    """
    kept = True
    for _ in range(rng.choice((1, 1, 2))):
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
        if not files:
            return False
        labels = [file for file in files if file.suffix in _OF_TEXT]
        file = rng.choice(labels if labels and rng.random() < 0.7 else files)
        if file.suffix == ".json" and rng.random() < 0.6:
            kept &= _value(file, rng)
        else:
            rng.choice(_WAYS)(file, rng)
            kept = False
    return kept


_OF_TEXT = (".json", ".xml", ".txt", ".yaml", ".csv", ".jsonl")


def _value(file: Path, rng: random.Random) -> bool:
    """Put an odd value into a json; return whether it stands for a value of a record, not for records."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # damaged before
        return False
    places = list(_places(content))
    if not places:
        return False
    holder, key = rng.choice(places)
    old = holder[key]
    kept = not (isinstance(old, dict) and isinstance(holder, list))
    kept &= not (isinstance(old, list) and any(isinstance(item, dict) for item in old))
    if rng.random() > 0.15:
        holder[key] = rng.choice(ODD)
    elif isinstance(holder, dict):
        del holder[key]
    else:
        holder.append(old)
        kept = False
    file.write_text(json.dumps(content, ensure_ascii=rng.random() < 0.5), encoding="utf-8", errors="replace")
    return kept


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place in nested dicts and lists: its holder and its key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content) + 1)])


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 3, 20))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    file.write_bytes(content)


def _insert(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    place = rng.randrange(len(content) + 1)
    piece = rng.choice(WORDS).encode("utf-8", "surrogatepass") * rng.choice((1, 1, 3))
    file.write_bytes(content[:place] + piece + content[place:])


def _repeat(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    start = rng.randrange(len(content) + 1)
    file.write_bytes(content + content[start:])


def _empty(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"" if rng.random() < 0.5 else bytes(rng.choice((1, 8, 500))))


def _lose(file: Path, rng: random.Random) -> None:
    file.unlink()


def _swap(file: Path, rng: random.Random) -> None:
    """Put another file of the folder in its place."""
    others = [path for path in sorted(file.parent.rglob("*")) if path.is_file() and not path.is_symlink()]
    file.write_bytes(rng.choice(others).read_bytes())


def _special(file: Path, rng: random.Random) -> None:
    """Replace it by a folder, a pipe, a device or a link that leads nowhere."""
    file.unlink()
    kind = rng.choice(("folder", "fifo", "loop", "device", "dangling"))
    if kind == "folder":
        file.mkdir()
    elif kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to({"loop": file.name, "device": "/dev/zero", "dangling": "nothing"}[kind])


def _rename(file: Path, rng: random.Random) -> None:
    name = rng.choice(
        (f"{'n' * 240}{file.suffix}", f"{file.stem}\u0301{file.suffix}", f"é {file.name.upper()}")
    )
    file.rename(file.with_name(name))


_WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    *(_cut, _flip, _flip, _insert, _insert, _insert, _repeat, _empty, _lose, _swap, _special, _rename),
)
