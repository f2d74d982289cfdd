"""What a store already holds of a job: its description, its shards, and the files put together from them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from msefpn.errors import UserError
from msefpn.inference.sources import ahead, source_of
from msefpn.plain import CsvRows
from msefpn.prediction.shards.job import ImageNames, Job, changed_option
from msefpn.prediction.shards.store import BEGUN, JOB, SHARDS, Store
from msefpn.prediction.shards.table import Footer, check_shard_rows, decode_shard, mark_states, predictions_in
from msefpn.prediction.shards.work import shard_file
from msefpn.reading import parse_json
from msefpn.runs.folder import PREDICTIONS

UNREADABLE, NOTES = "unreadable.csv", "notes.csv"
_MADE_AT_THE_END = (UNREADABLE, NOTES, PREDICTIONS)
_READERS = 8
"""Threads that read shards, since reading at an address takes long."""
_ELSEWHERE = "name another --out, or remove that"


@dataclass(frozen=True)
class Whole:
    """A complete shard of this job."""

    index: int
    table: pa.Table
    footer: Footer


class Before(NamedTuple):
    """The description of a job that a store holds."""

    there: bool
    values: dict[str, Any] | None
    """None: missing or damaged."""

    @property
    def shard_size(self) -> int | None:
        """Images of a shard."""
        size = None if self.values is None else self.values.get("shard_size")
        return size if type(size) is int and size > 0 else None


def look_before(store: Store) -> Before:
    """Read the job of a store, which must be new or empty if it has none. Raises UserError."""
    content = store.read(JOB)
    if content is None:
        store.check_new()
        return Before(False, None)
    try:
        values = parse_json(content)
    except ValueError:
        values = None
    return Before(True, values if isinstance(values, dict) else None)


class Journal:
    """The shards of a job in a store.

    Args:
        store: where they are.
        job: what made them, or will.
        inputs: its images.
    """

    def __init__(self, store: Store, job: Job, inputs: ImageNames) -> None:
        self.store, self.job, self.inputs = store, job, inputs

    def check_same(self, before: Before) -> None:
        """Raise UserError if the store holds the results of another job; nothing is written."""
        if before.values is None:
            return
        now, was, out = self.job.about(), before.values, self.store.shown()
        if was.get("version") != now["version"]:
            raise UserError(f"out '{out}' was made by another version of msefpn: name another --out")
        if was.get("model") != now["model"]:
            raise UserError(f"out '{out}' holds results of other weights than {self.job.run}'s: {_ELSEWHERE}")
        options = was.get("options")
        changed = changed_option(options if isinstance(options, dict) else {}, now["options"])
        if changed:
            raise UserError(f"out '{out}' holds results with other options ({changed}): {_ELSEWHERE}")
        if was.get("inputs") != now["inputs"]:
            raise UserError(
                f"out '{out}' holds results of other images ({was.get('images')}, now {now['images']}): "
                f"{_ELSEWHERE}"
            )
        if was.get("shard_size") != now["shard_size"]:
            raise UserError(
                f"out '{out}' has shards of {was.get('shard_size')} images, now {now['shard_size']}: leave "
                "out --shard-size, or name another --out"
            )

    def begin(self) -> None:
        """Write the job's description, and remove the marks of an attempt that died. Raises UserError."""
        self.store.write(JOB, json.dumps(self.job.about(), indent=1).encode())
        self.store.clear(BEGUN)

    def undo(self) -> None:
        """Remove what `begin` wrote, unless a shard was finished."""
        with contextlib.suppress(UserError):
            if not self.store.names(SHARDS):
                self.store.clear(BEGUN, files=(JOB,))

    def check(self) -> tuple[list[int], dict[int, str]]:
        """Check the existing shards.

        Returns:
            Numbers of those that are whole; for the others, by number, what is wrong with them.

        Raises:
            UserError: a shard is of another job.
        """
        known = {shard_file(index): index for index in range(self.inputs.shards)}
        there = [f"{SHARDS}/{name}" for name in self.store.names(SHARDS)]
        stray = next((name for name in there if name not in known), None)
        if stray is not None:
            raise UserError(f"'{self.store.shown(stray)}' is not a shard of this job: {_ELSEWHERE}")
        whole, wrong = [], dict[int, str]()
        for index, found in self._read(known[name] for name in there):
            if isinstance(found, Whole):
                whole.append(index)
            else:
                wrong[index] = found
        return whole, wrong

    def forget_the_end(self) -> None:
        """Remove the files that are put together from all shards. Raises UserError."""
        self.store.clear(files=_MADE_AT_THE_END)

    def each(self, indices: Iterable[int]) -> Iterator[Whole]:
        """Read whole shards. Raises UserError if one was damaged since they were checked."""
        for index, found in self._read(indices):
            if not isinstance(found, Whole):
                name = self.store.shown(shard_file(index))
                raise UserError(f"'{name}' {found}: run the same command again")
            yield found

    def _read(self, indices: Iterable[int]) -> Iterator[tuple[int, Whole | str]]:
        yield from ahead((partial(self._look_at, index) for index in indices), _READERS)

    def _look_at(self, index: int) -> tuple[int, Whole | str]:
        """A shard, or what is wrong with it. Raises UserError if it is of another job."""
        name = shard_file(index)
        content = self.store.read(name)
        if content is None:
            return index, "is missing"
        names = self.inputs.shard(index)
        try:
            table, footer = decode_shard(content)
        except ValueError as error:
            return index, f"is damaged ({error})"
        if footer.fingerprint != self.job.fingerprint(index, names):
            raise UserError(
                f"'{self.store.shown(name)}' was made with other weights, options or images: {_ELSEWHERE}"
            )
        try:
            check_shard_rows(table, footer, index * self.job.size, names)
        except ValueError as error:
            return index, f"is damaged ({error})"
        if footer.states != mark_states([source_of(one) for one in names]):
            return index, "has images that have changed since"
        return index, Whole(index, table, footer)


class Totals(NamedTuple):
    """Sums over shards."""

    images: int
    unreadable: int
    objects: int
    dropped: int
    files: list[dict[str, Any]]
    """For each shard: file, images, objects, unreadable."""


def put_together(journal: Journal, indices: Iterable[int], kinds: Iterable[str]) -> Totals:
    """Write the lists of unreadable images and notes of some shards, and predictions.json if asked.

    Raises:
        UserError: a file cannot be written.
    """
    store, files = journal.store, list[dict[str, Any]]()
    unreadable, notes = _List("image", "reason"), _List("image", "note")
    images = objects = dropped = 0
    with contextlib.ExitStack() as stack:
        merged = stack.enter_context(store.writing(PREDICTIONS)) if "json" in kinds else None
        entries = None if merged is None else stack.enter_context(_Entries.open(merged))
        for shard in journal.each(indices):
            footer, count = shard.footer, shard.table.num_rows
            images, objects, dropped = images + count, objects + footer.objects, dropped + footer.dropped
            unreadable.add(footer.unreadable)
            notes.add(footer.notes)
            if entries is not None:
                entries.add(shard)
            about = {"images": count, "objects": footer.objects, "unreadable": len(footer.unreadable)}
            files.append({"file": store.shown(shard_file(shard.index)), **about})
    for name, own in ((UNREADABLE, unreadable), (NOTES, notes)):
        if own.count:
            store.write(name, own.text.getvalue().encode())
        else:
            store.remove(name)
    return Totals(images, unreadable.count, objects, dropped, files)


class _List:
    """A table of two columns of texts."""

    def __init__(self, *heads: str) -> None:
        self.text, self.count = io.StringIO(newline=""), 0
        self.rows = CsvRows(self.text)
        self.rows.add(heads)

    def add(self, rows: Iterable[tuple[str, str]]) -> None:
        """Add rows."""
        for row in rows:
            self.rows.add(row)
            self.count += 1


class _Entries:
    """predictions.json, written shard by shard."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.file, self.first = file, True

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[_Entries]:
        """Open the file, which is complete when the body has ended."""
        with path.open("w", encoding="utf-8") as file:
            file.write("[")
            yield cls(file)
            file.write("\n]")

    def add(self, shard: Whole) -> None:
        """Write the objects of a shard, with the same keys as a prediction without shards."""
        from msefpn.inference.detect import as_results  # noqa: PLC0415  (imports torch)

        footer = shard.footer
        names = dict(zip(footer.category_ids, footer.classes, strict=True))
        for row in predictions_in(shard.table):
            for item in as_results(row.found, footer.category_ids):
                entry = {"file_name": row.image, "category": names[item["category_id"]], **item}
                self.file.write(f"{'' if self.first else ','}\n{json.dumps(entry)}")
                self.first = False
