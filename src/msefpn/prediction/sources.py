"""Pictures out of files, addresses, videos and cameras, one after the other."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import tempfile
import urllib.parse
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from msefpn.data.images import ImageFault, read_image
from msefpn.prediction.download import fetch
from msefpn.prediction.request import VIDEOS, Source

T = TypeVar("T")

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Of a frame; Pillow decodes no larger image either."""
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""By `sys.platform`: FFmpeg's name for the system's cameras, and for one of them."""
_MISSING = 0.02
"""The part of a video's frames that may be missing at its end before that is told: counts are estimates."""


class Picture(NamedTuple):
    """An image, or a frame."""

    source: int
    """Place of its source among those given."""
    pixels: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    frame: int | None = None
    """Counted from 0, those that are left out too; None: it is no frame."""
    rate: float | None = None
    """Pictures in a second, of a video, without those that are left out."""


class Fault(NamedTuple):
    """Something that could not be read."""

    source: int
    text: str
    """What, and why."""
    partly: bool = False
    """Of a video: what came before it was read."""


def read_pictures(sources: Sequence[Source], *, stride: int, most: int | None) -> Iterator[Picture | Fault]:
    """Read the pictures of all sources, in order; the next ones while the last is looked at.

    Args:
        sources: where to read.
        stride: of a video or camera, every so many frames are taken.
        most: of a video or camera, take so many frames; None: all.
    """
    numbered = list(enumerate(sources))
    for kind, group in itertools.groupby(numbered, key=lambda item: item[1].kind):
        if kind == "image":
            tasks = (partial(_read_image, number, source.name, Path(source.name)) for number, source in group)
            yield from _ahead(tasks, workers=2)
            continue
        for number, source in group:
            if kind == "url":
                yield from _of_url(number, source.name, stride, most)
            else:
                yield from _ahead_of(_frames(number, source, source.name, stride, most))


def count_pictures(sources: Sequence[Source], *, stride: int, most: int | None) -> int | None:
    """How many pictures there will be, if that can be told without reading them all."""
    total = 0
    for source in sources:
        if source.kind == "image":
            total += 1
            continue
        frames = 0
        if source.kind == "video":
            try:
                with av.open(source.name) as container:
                    frames = container.streams.video[0].frames
            except (FFmpegError, OSError, IndexError):
                continue
        taken = [count for count in (-(-frames // stride), most) if count]
        if not frames:
            return None
        total += min(taken)
    return total


def _ahead(tasks: Iterator[Callable[[], T]], *, workers: int) -> Generator[T]:
    """Results of tasks, in order; as many as there are workers, and two more, are made ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque(pool.submit(task) for task in itertools.islice(tasks, workers + 2))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(task) for task in itertools.islice(tasks, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def _ahead_of(items: Generator[Picture | Fault]) -> Iterator[Picture | Fault]:
    """The same items, the next ones made in a thread."""
    made = _ahead(itertools.repeat(partial(next, items, None)), workers=1)
    with contextlib.closing(items), contextlib.closing(made):
        yield from itertools.takewhile(lambda item: item is not None, made)


def _read_image(number: int, name: str, path: Path) -> Picture | Fault:
    try:
        return Picture(number, read_image(path))
    except (OSError, ImageFault) as error:
        return Fault(number, f"{name}: {_in_one_line(error)}")


def _of_url(number: int, url: str, stride: int, most: int | None) -> Iterator[Picture | Fault]:
    with tempfile.TemporaryDirectory(prefix="msefpn-") as folder:
        try:
            path, kind = fetch(url, Path(folder))
        except ImageFault as error:
            yield Fault(number, f"{url}: {error}")
            return
        suffix = Path(urllib.parse.urlsplit(url).path).suffix.lower()
        if kind.startswith("video/") or suffix in VIDEOS:
            yield from _ahead_of(_frames(number, Source("video", str(path)), url, stride, most))
            return
        result = _read_image(number, url, path)
        if isinstance(result, Fault) and kind and not kind.startswith(("image/", "application/octet")):
            result = Fault(number, f"{url}: no image, the server says it is {kind}")
        yield result


def _frames(
    number: int, source: Source, name: str, stride: int, most: int | None
) -> Generator[Picture | Fault]:
    """Frames of a video file or camera; a fault ends them."""
    seen = taken = promised = 0
    length = end = 0.0  # seconds
    try:
        with _opened(source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            promised = stream.frames
            rate = float(stream.average_rate or 25) / stride
            length = _seconds(container, stream)
            for frame in container.decode(stream):
                end = frame.time or 0.0
                if seen % stride == 0:
                    yield Picture(number, _upright(frame), seen, rate)
                    taken += 1
                    if taken == most:
                        return
                seen += 1
    except (FFmpegError, OSError, ImageFault) as error:
        reason = _in_one_line(error)
        if not seen:
            yield Fault(number, f"{name}: {reason}")
            return
        yield Fault(number, f"{name} breaks off after {seen}{_of(promised)} frames: {reason}", partly=True)
        return
    if not seen:
        yield Fault(number, f"{name}: holds no frame that can be read")
    elif _is_short(seen, promised) if promised else _is_short(end, length):
        yield Fault(number, f"{name} breaks off after {seen}{_of(promised)} frames", partly=True)


def _opened(source: Source) -> Any:
    """The container of a video or camera, its first video stream readable. Raises ImageFault, OSError."""
    place, form = source.name, None
    if source.kind == "camera":
        device = source.name.rpartition(":")[2]
        if sys.platform not in _CAMERAS:
            raise ImageFault(f"cameras cannot be read on {sys.platform}: give a video file")
        form, place = _CAMERAS[sys.platform][0], _CAMERAS[sys.platform][1].format(device)
    try:
        container = av.open(place, format=form)
    except FFmpegError as error:
        what = "no camera that can be read" if form else "no video that can be read"
        raise ImageFault(f"{what} ({error.strerror or error})") from None
    if not container.streams.video:
        container.close()
        raise ImageFault("holds no pictures")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise ImageFault("its codec is unknown: convert it, such as to H.264")
    if stream.width * stream.height > MOST_PIXELS:
        container.close()
        raise ImageFault(
            f"a frame has {stream.width * stream.height / 1e6:.0f} million pixels, the limit is "
            f"{MOST_PIXELS / 1e6:.0f} million"
        )
    return container


def _is_short(there: float, stated: float) -> bool:
    """Whether much less of a video is there, in frames or seconds, than its file states."""
    return stated - there > max(2.0, _MISSING * stated)


def _seconds(container: Any, stream: Any) -> float:
    """The length of a video stream as the file states it; 0 if it does not."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if tag := re.match(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])  # Matroska's
    alone = container.duration is not None and len(container.streams) == 1
    return float(container.duration / av.time_base) if alone else 0.0


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) RGB, turned as the file says: telephones store them lying."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    turns, rest = divmod(int(frame.rotation), 90)
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns % 4 and not rest else pixels


def _of(promised: int) -> str:
    return f" of {promised}" if promised else ""


def _in_one_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__


# Pillow warns from half of what it refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
