"""What a prediction in shards is to do: images, detector and options; imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from msefpn.checkpoint import find_weights
from msefpn.errors import UserError
from msefpn.inference.frames import InputSource
from msefpn.prediction.request import PredictionOptions
from msefpn.reading import open_file, unreadable

JOB_VERSION = 1
"""Of what a job and its shards say of themselves."""
MOST = 1000
"""Images of a shard where nobody says how many."""
_SHARDS = 16
"""Shards that a few images are divided into."""
_MAKES_NO_DIFFERENCE = ("device", "compile", "trust", "stride", "frames", "proposals")
"""Options that a job may go on with otherwise, or that shards refuse."""
_BATCH = 100_000
_CHUNK = 1 << 20


class ImageNames:
    """The names of the images, each once, in the order given; compact, for there may be millions.

    Args:
        sources: what was found.

    Attributes:
        names: the names.
        size: images of a shard, to be set before shards are asked for.

    Raises:
        UserError: one is a video or a camera, or there is none.
    """

    def __init__(self, sources: Iterable[InputSource]) -> None:
        parts, waiting = [], list[str]()
        for source in sources:
            if source.is_video:
                raise UserError(
                    f"'{source.name}' has frames, and shards hold images: leave it out, or leave out --jobs "
                    "and --ray"
                )
            waiting.append(source.name)
            if len(waiting) == _BATCH:
                parts.append(_array(waiting))
                waiting.clear()
        names = pc.unique(pa.chunked_array([*parts, _array(waiting)], pa.large_string()))
        self.names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        if not len(self.names):
            raise UserError("no images given: give files, folders, globs, addresses, or a list of them")
        self.size = 1

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shards(self) -> int:
        """How many shards there are, of `size` images but for the last."""
        return -(-len(self.names) // self.size)

    def shard(self, index: int) -> list[str]:
        """The names in one shard."""
        names: list[str] = self.names.slice(index * self.size, self.size).to_pylist()
        return names

    def first_with(self, prefix: str) -> str | None:
        """The first name that begins so; None: there is none."""
        found = self.names.filter(pc.starts_with(self.names, prefix))
        return str(found[0].as_py()) if len(found) else None

    def digest(self) -> str:
        """A mark of all names, in their order."""
        mark = hashlib.sha256()
        for start in range(0, len(self.names), _BATCH):
            mark.update("\n".join(self.names.slice(start, _BATCH).to_pylist()).encode() + b"\n")
        return mark.hexdigest()


def _array(names: Sequence[str]) -> Any:
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError:  # a name in other bytes, which Python reads as halves of a pair
        wrong = next(name for name in names if not _is_unicode(name))
        raise UserError(f"'{wrong}' has a name that is not Unicode: rename it") from None


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Job:
    """A prediction in shards."""

    run: str
    """What the detector is read from; a path is absolute."""
    out: str
    """Folder or address of the results; a path is absolute."""
    options: PredictionOptions
    size: int
    """Images of a shard."""
    images: int
    """Of all shards."""
    inputs: str
    """Mark of the names of all images."""
    model: str
    """Mark of the weights."""
    home: str
    """Folder that relative names of images are in."""
    plugins: tuple[str, ...] = ()

    def about(self) -> dict[str, Any]:
        """What decides the results, as plain values."""
        return {
            "version": JOB_VERSION,
            "model": self.model,
            "options": _decisive(self.options),
            "images": self.images,
            "inputs": self.inputs,
            "shard_size": self.size,
        }

    def fingerprint(self, index: int, names: Sequence[str]) -> str:
        """Mark of a shard: of the weights, the options and its images."""
        decides = [JOB_VERSION, self.model, _decisive(self.options), index * self.size, *names]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def task(self) -> str:
        """The job as json, for another process."""
        values = dataclasses.asdict(self)
        values["options"] = {name: value for name, value in values["options"].items() if name != "proposals"}
        return json.dumps(values)

    @classmethod
    def read(cls, task: str) -> Job:
        """The job that `task` wrote."""
        values = json.loads(task)
        options = values.pop("options")
        options |= options.pop("detection")
        plugins = tuple(values.pop("plugins"))
        return cls(**values, options=PredictionOptions.given(**options), plugins=plugins)


def _decisive(options: PredictionOptions) -> dict[str, Any]:
    """The options that decide what is found, by name."""
    values = dataclasses.asdict(options)
    values |= values.pop("detection")
    plain = json.loads(json.dumps({k: v for k, v in values.items() if k not in _MAKES_NO_DIFFERENCE}))
    return dict(sorted(plain.items()))


def shard_size(images: int, batch: int, given: int | None) -> int:
    """Images of a shard, a multiple of the batch: a batch never spans two. Raises UserError."""
    if given is None:
        size = min(MOST, -(-images // _SHARDS))
        return -(-size // batch) * batch
    if given % batch:
        raise UserError(f"shard-size {given} is not a multiple of batch {batch}: give one, such as {batch}")
    return given


def check_shard_options(options: PredictionOptions) -> None:
    """Refuse options that shards cannot follow. Raises UserError."""
    if options.proposals is not None:
        raise UserError(
            "proposals are read for all images at once, and shards are predicted apart: leave out --jobs and "
            "--ray"
        )
    default = PredictionOptions()
    for name in ("stride", "frames"):
        if getattr(options, name) != getattr(default, name):
            raise UserError(f"{name} is for videos and cameras, and shards hold images: leave out --{name}")


def mark_model(run: str) -> str:
    """Mark of the weights, or of an exported file with what belongs to it. Raises UserError."""
    file = find_weights(run)
    mark = hashlib.sha256()
    for part in (file, file.with_suffix(".bin")) if file.suffix == ".xml" else (file,):
        try:
            with open_file(part) as opened:
                while chunk := opened.read(_CHUNK):
                    mark.update(chunk)
        except OSError as error:
            raise unreadable(part, error, "take another copy of it") from None
    return mark.hexdigest()


def changed_option(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first option that differs, for a message: `score 0.3, now 0.5`; empty for none."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            return f"{name} {_said(before.get(name))}, now {_said(now.get(name))}"
    return ""


def _said(value: Any) -> str:
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
