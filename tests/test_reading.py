"""Readers have bounds, and say in a line what is over one, where, and how to fix it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from msefpn import reading
from msefpn.errors import UserError
from msefpn.reading import (
    MAX_DEPTH,
    Record,
    open_file,
    parse_json,
    parse_xml,
    parse_yaml,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
    real_path,
    shown,
)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for name, says in {
        "pipe": "is not a regular file",
        "zero": "is not a regular file",
        ".": "is a folder",
    }.items():
        with pytest.raises(OSError, match=says):
            open_file(tmp_path / name)
    for path in (tmp_path / "a", tmp_path / ("x" * 5000), "nul\0", tmp_path / "none"):
        with pytest.raises(OSError):  # noqa: PT011  (the system's words)
            open_file(path)


def test_bytes_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="has more than 0 MB"):
        read_bytes(tmp_path / "x", 4)
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_text(tmp_path / "x")


DEEP = MAX_DEPTH + 1
JSON = {
    "[" * 100_000: "nested more than 64 deep",
    "[" * DEEP + "]" * DEEP: "nested more than 64 deep",
    '{"a": ' * DEEP + "1" + "}" * DEEP: "nested more than 64 deep",
    "[1": "not a complete json",
    f"[{'9' * 5000}]": "a number or a nesting that is too large",
    r'{"categories": [{"name": "\ud800"}]}': r"not Unicode at categories\[0\].name",
    r'{"\udc00": 1}': "key that is not Unicode",
}


@pytest.mark.parametrize("text", JSON)
def test_hostile_json(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=JSON[text]):
        parse_json(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=rf"x\.json' .*{JSON[text]}.*: fix it"):
        read_json(tmp_path / "x.json", "fix it")


def test_sound_json() -> None:
    sound: dict[str, Any] = {"a": "[[[[" * 100, "b": [[1.5, None, True]], "\u00e9": "\U0001f600"}
    assert parse_json(json.dumps(sound)) == sound
    assert parse_json(json.dumps(sound, ensure_ascii=False).encode("utf-16")) == sound
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deepest)) == deepest


ALIASES = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 9)}]\n" for n in range(7))
YAML = {
    "a: &a [*a]": "nested|recursive",
    "a: &a {b: *a}": "nested|recursive",
    ALIASES: "holds more than",
    "[" * 5000: "nested more than 64 deep",
    "- " * 5000: "nested too deeply",
    "a: 1\n" * 40_000: "holds more than 30000 values",
    r'a: "\xZZ"': "not valid YAML",
    r'a: "\U00110000"': "not valid YAML",
    r'a: "\ud800"': "not Unicode at a",
    f"a: {'9' * 5000}": "not valid YAML",
    "a: !!binary aGVsbG8=": "has a bytes at a",
    "a: !!set {b}": "has a set at a",
    "a: !!python/object/apply:os.system [id]": "not valid YAML",
    "a: !!timestamp 2020-01-01": "has a date at a",
}


@pytest.mark.parametrize("text", YAML)
def test_hostile_yaml(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=YAML[text]):
        parse_yaml(text)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml' .*: fix it"):
        read_yaml(tmp_path / "x.yaml", "fix it")


def test_sound_yaml() -> None:
    assert parse_yaml("day: 2020-01-01\nlr: 0.1\nnames: &n [a, b]\nmore: *n\n") == {
        "day": "2020-01-01",  # a text: settings have no dates, and 2020-99-99 is none
        "lr": 0.1,
        "names": ["a", "b"],
        "more": ["a", "b"],
    }
    assert parse_yaml("names: [no, 1]", texts=True) == {"names": ["no", "1"]}


XML = {
    '<!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>': "has a DOCTYPE",
    '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>': "has a DOCTYPE",
    "<a>" * DEEP + "</a>" * DEEP: "nested more than 64 deep",
    "<a>" * 100_000: "nested more than 64 deep",
    "<a>": "not a complete xml",
    '<?xml version="1.0" encoding="none"?><a/>': "not a complete xml",
}


@pytest.mark.parametrize("text", XML)
def test_hostile_xml(text: str) -> None:
    with pytest.raises(ValueError, match=XML[text]):
        parse_xml(text.encode())


def test_sound_xml() -> None:
    assert parse_xml("<a><b>\u00e9</b></a>".encode()).findtext("b") == "\u00e9"
    assert parse_xml("<?xml version='1.0' encoding='utf-16'?><a>x</a>".encode("utf-16")).text == "x"


def test_a_record_names_key_and_place() -> None:
    record = Record(
        {"a": "x", "n": 10**400, "t": ["x", "x"], "w": [1, "2"], "r": {"b": float("nan")}, "e": ""},
        "m.json: entry 3",
        "fix it",
    )
    assert record.text("a") == "x"
    for call, says in (
        (lambda: record.whole("n"), "has 1000.* as 'n', not a whole number"),
        (lambda: record.number("n"), "not a number"),
        (lambda: record.number("a"), "has 'x' as 'a', not a number"),
        (lambda: record.text("e"), "has '' as 'e', not a text"),
        (lambda: record.texts("t"), "has a value twice in 't'"),
        (lambda: record.wholes("w"), "not a list of different whole numbers"),
        (lambda: record.record("a"), "not an object with keys"),
        (lambda: record.record("r").number("b"), r"\(r\) has nan as 'b'"),
        (lambda: record.text("z"), "has no 'z'"),
        (lambda: Record([], "m.json", "fix it"), r"is \[\], not an object"),
    ):
        with pytest.raises(UserError, match=rf"^m\.json.*{says}.*: fix it$"):
            call()
    assert shown(10**3000).endswith("...")
    assert shown(1 << 20_000) == "a value too large to show"


def test_a_loop_of_links_has_a_path(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert real_path(tmp_path / "a").is_absolute()
    assert real_path("nul\0").name == "nul\0"
    (tmp_path / "c").symlink_to(tmp_path)
    assert real_path(tmp_path / "c" / ".." / tmp_path.name / "d") == real_path(tmp_path) / "d"
    for path in Path(reading.__file__).parent.rglob("*.py"):
        assert ".resolve(" not in path.read_text(encoding="utf-8"), path  # it raises for a loop


def test_every_reader_uses_these() -> None:
    """No other module parses json, YAML or xml, or reads the whole of a file."""
    ours = Path(reading.__file__)
    allowed = {
        "names.py": "timm's own source",
        "html/page.py": "the package's own",
        "explaining/maps.py": "the package's own",
        "config.py": "the package's own recipes",
        "data/split.py": "pictures that were read before",
        "runs/memory.py": "/proc",
        "pretrained.py": "a package's own",
        "reporting/page.py": "the run's configuration as this process wrote it down",
        "ablation/grid.py": "what a trial's process printed",
        "ablation/worker.py": "what the grid's own process sends",
        "ablation/cost.py": "likewise",
        "exporting/export.py": "what this process wrote",
        "training/fingerprint.py": "the configuration as this process wrote it down",
        "training/resume.py": "likewise",
        "training/alike.py": "the package's own",
        "prediction/shards/pipes.py": "what the command's own process sends",
        "prediction/shards/job.py": "likewise",
    }
    words: tuple[str, ...] = (
        "json.loads(",
        "json.load(",
        "yaml.safe_load(",
        "yaml.load(",
        "ElementTree.parse(",
        ".fromstring(",
    )
    words += (".read_bytes(", ".read_text(")
    for path in ours.parent.rglob("*.py"):
        name = path.relative_to(ours.parent).as_posix()
        if path == ours or name in allowed or name.startswith("web/"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not [word for word in words if word in text.replace("reading.read_", "")], name
