"""One shard: its images are read, detected on and written, by a process, an actor of Ray, or in place."""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msefpn import plugins
from msefpn.errors import UserError
from msefpn.inference.frames import InputSource, ReadFailure
from msefpn.inference.sources import source_of
from msefpn.prediction.shards.job import Job, mark_model
from msefpn.prediction.shards.store import BEGUN, GO_ON, JOB, SHARDS, open_store
from msefpn.prediction.shards.table import Footer, Row, encode_shard, mark_states
from msefpn.reading import parse_json
from msefpn.runs.imports import import_models

if TYPE_CHECKING:
    from msefpn.prediction.loaded import LoadedDetector

ATTEMPTS = 3
"""Lost workers after which a shard is left out."""


class Report(NamedTuple):
    """What became of a shard."""

    shard: int
    images: int = 0
    """Those that could be read."""
    unreadable: int = 0
    objects: int = 0
    attempts: int = 1
    """Workers that it took: all but the last were lost."""
    lost: str = ""
    """Why it was left out; the job continues without it."""
    wrong: str = ""
    """The message of a `UserError`; the job stops."""
    bug: str = ""
    """The traceback of an unexpected error; the job stops."""


class Mark(NamedTuple):
    """Written when a worker begins a shard and removed when it ends: a mark that stays is a lost worker's."""

    attempts: int
    process: int
    machine: str
    image: str = ""
    """The image that is being read, from the second attempt on."""


def shard_file(index: int) -> str:
    """The file of a shard in a store."""
    return f"{SHARDS}/shard-{index:06}.parquet"


def _mark_file(index: int) -> str:
    return f"{BEGUN}/{index}.json"


class ShardWorker:
    """Predicts shards of a job, with a detector that is loaded for the first shard.

    Args:
        task: see `Job.task`.
        number: of this worker on its machine, which decides its GPU; None: it uses the first one.
    """

    def __init__(self, task: str, number: int | None = None) -> None:
        self.job = Job.read(task)
        self.number = number
        self.detector: LoadedDetector | None = None

    def __call__(self, index: int, names: Sequence[str]) -> Report:
        """Predict a shard, unless it has cost too many workers."""
        try:
            self.store = open_store(self.job.out)
            if not self.store.read(JOB):
                raise UserError(
                    f"'{self.store.shown()}' is not the job's folder on {socket.gethostname()}: it is gone, "
                    "or not shared by the machines: give --out on a shared disk, or an address"
                )
            before = self._last_mark(index)
            if before is not None and before.attempts >= ATTEMPTS:
                return Report(index, lost=_told(before, names))
            return self._predict(index, names, 0 if before is None else before.attempts)
        except UserError as error:
            return Report(index, wrong=str(error))
        except Exception:
            return Report(index, bug=traceback.format_exc())

    def _last_mark(self, index: int) -> Mark | None:
        try:
            content = self.store.read(_mark_file(index))
            return None if content is None else Mark(**parse_json(content))
        except (ValueError, TypeError):
            return None

    def _mark(self, index: int, attempts: int, image: str = "") -> None:
        mark = Mark(attempts, os.getpid(), socket.gethostname(), image)
        self.store.write(_mark_file(index), json.dumps(mark._asdict()).encode())

    def _predict(self, index: int, names: Sequence[str], attempts: int) -> Report:
        self._mark(index, attempts + 1)
        try:
            sources = [source_of(name) for name in names]
            states = mark_states(sources)
            detector = self._loaded()
            rows, unreadable, notes = self._rows(detector, index, sources, attempts)
            footer = Footer(
                self.job.fingerprint(index, names),
                states,
                tuple(unreadable),
                tuple(notes),
                sum(len(row.found.scores) for row in rows),
                sum(row.found.num_dropped for row in rows),
                tuple(detector.classes),
                tuple(map(int, detector.category_ids)),
            )
            content = encode_shard(rows, footer, masks=detector.detector.learns_masks)
            self.store.write(shard_file(index), content)
            return Report(index, len(rows), len(unreadable), footer.objects, attempts + 1)
        finally:
            self.store.remove(_mark_file(index))

    def _rows(
        self, detector: LoadedDetector, index: int, sources: list[InputSource], attempts: int
    ) -> tuple[list[Row], list[tuple[str, str]], list[tuple[str, str]]]:
        """The rows of a shard; images that cannot be read, and why; images with a note, and the note."""
        from msefpn.prediction.predict import Request  # noqa: PLC0415  (imports torch)

        def careful(number: int) -> None:
            self._mark(index, attempts + 1, sources[number].name)

        # The first frame alone: an address may turn out to be a video's.
        request = Request(detector, sources, replace(self.job.options, frames=1), None)
        rows, notes, failures = [], [], list[ReadFailure]()
        first = index * self.job.size
        for _, frame, found in request.results(failures.append, careful if attempts else None):
            name = sources[frame.source].name
            if frame.number is not None:
                failures.append(ReadFailure(frame.source, "is a video, and shards hold images"))
                continue
            notes += [(name, frame.told.removeprefix(f"{name}: "))] * bool(frame.told)
            height, width = frame.pixels.shape[:2]
            rows.append(Row(first + frame.source, name, (height, width), found))
        refused = next((one.text for one in failures if one.passing), None)
        if refused is not None:
            raise UserError(f"{refused}; {GO_ON}")
        reasons = sorted({one.source: one.text for one in failures}.items())
        named = [(sources[source].name, text) for source, text in reasons]
        return rows, [(name, text.removeprefix(f"{name}: ")) for name, text in named], notes

    def _loaded(self) -> LoadedDetector:
        if self.detector is not None:
            return self.detector
        options = self.job.options
        plugins.load(self.job.plugins)
        if mark_model(self.job.run) != self.job.model:
            raise UserError(
                f"{self.job.run} has other weights on {socket.gethostname()} than when the job began: give "
                "all machines the same"
            )
        if not options.compile:
            import_models()
        import torch  # noqa: PLC0415  (slow)

        from msefpn.prediction.loaded import LoadedDetector  # noqa: PLC0415  (imports torch)

        if self.number is not None and options.device != "cpu" and torch.cuda.is_available():
            torch.cuda.set_device(self.number % torch.cuda.device_count())
        opened = LoadedDetector.open(
            Path(self.job.run),
            size=options.size,
            device=options.device,
            compile=options.compile,
            options=options.detection,
        )
        opened.check(options)
        if opened.detector.takes_proposals:
            raise UserError(
                f"{self.job.run} needs proposals, which are read for all images at once: leave out --jobs "
                "and --ray"
            )
        self.detector = opened
        return opened


def _told(mark: Mark, names: Sequence[str]) -> str:
    last = f", the last at '{mark.image}'" if mark.image else ""
    return (
        f"{mark.attempts} processes were lost on it, the last {mark.process} on {mark.machine}{last} (of "
        f"{len(names)} images from '{names[0]}' on)"
    )
