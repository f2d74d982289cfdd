"""A prediction in shards: its images, detector and options. Does not import torch."""

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
"""Version of the description of a job and of the metadata of its shards."""
_LARGEST = 1000
"""Images of a shard by default."""
_SHARDS = 16
"""Number of shards of up to 16,000 images by default."""
_MAKES_NO_DIFFERENCE = ("device", "compile", "trust", "stride", "frames", "proposals")
"""Options that may change when a job is continued, or that shards refuse."""
_BATCH = 100_000
_CHUNK = 1 << 20


class ImageNames:
    """The names of the images, each once, in the order given; compact, since there may be millions.

    Args:
        sources: the images; those named twice are counted once.

    Attributes:
        names: the names.
        size: images of a shard, to be set before shards are asked for.

    Raises:
        UserError: one is a video or a camera, or no image was found.
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
        """The number of shards, of `size` images each; the last may have fewer."""
        return -(-len(self.names) // self.size)

    def shard(self, index: int) -> list[str]:
        """The names in one shard."""
        names: list[str] = self.names.slice(index * self.size, self.size).to_pylist()
        return names

    def first_with(self, prefix: str) -> str | None:
        """The first name with this prefix; None: there is none."""
        found = self.names.filter(pc.starts_with(self.names, prefix))
        return str(found[0].as_py()) if len(found) else None

    def digest(self) -> str:
        """The SHA-256 of all names, in order."""
        mark = hashlib.sha256()
        for start in range(0, len(self.names), _BATCH):
            mark.update("\n".join(self.names.slice(start, _BATCH).to_pylist()).encode() + b"\n")
        return mark.hexdigest()


def _array(names: Sequence[str]) -> Any:
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError:  # a file name that is not UTF-8, which Python decodes to lone surrogates
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
    """The weights: a name, or an absolute path."""
    out: str
    """Where the results are: an address, or an absolute path."""
    options: PredictionOptions
    size: int
    """Images of a shard."""
    images: int
    """Images of all shards."""
    inputs: str
    """See `ImageNames.digest`."""
    model: str
    """See `mark_model`."""
    home: str
    """Folder that relative names of images start from."""
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
        """The SHA-256 of what decides a shard: the weights, the options, its place and its images."""
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
    """Images of a shard, a multiple of the batch, so that no batch spans two shards. Raises UserError."""
    if given is None:
        size = min(_LARGEST, -(-images // _SHARDS))
        return -(-size // batch) * batch
    if given % batch:
        raise UserError(f"shard-size {given} is not a multiple of batch {batch}: give one, such as {batch}")
    return given


def check_shard_options(options: PredictionOptions) -> None:
    """Raise UserError for options that cannot be used in shards."""
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
    """The SHA-256 of the weights, or of an exported file with its .bin. Raises UserError."""
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
