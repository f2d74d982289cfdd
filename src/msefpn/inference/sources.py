"""Images and videos to detect on: finding them, and reading them one after the other."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from msefpn import remote
from msefpn.data.finding import UNREAD_SUFFIXES, examples, files_in, is_image_name
from msefpn.data.images import MAX_PICTURE, ImageFault, read_header, read_image
from msefpn.errors import UserError, missing_extra
from msefpn.inference.frames import VIDEO_SUFFIXES, Frame, InputSource, ReadFailure
from msefpn.inference.listed import LIST_SUFFIXES, find_remote, names_in
from msefpn.links import check_links
from msefpn.places import is_address

T = TypeVar("T")
_AHEAD = {"image": 2, "remote": 8}
"""Kinds of sources that are one picture each, and threads that read them: an answer from afar takes long."""
_CHUNK = 1 << 20
Paths = Sequence[str | Path] | str | Path


def find_sources(given: Paths, *, follow_links: bool = False) -> list[InputSource]:
    """Find files, all images in folders, matches of globs, what lists name, addresses and cameras, each once.

    Args:
        given: what the user names.
        follow_links: follow symbolic links that lead out of a given folder.

    Raises:
        UserError: something given leads to nothing, or a link leads out.
    """
    found = list(dict.fromkeys(each_source(given, follow_links=follow_links)))
    if not found:
        raise UserError("no images given: give files, folders, globs, URLs or a camera")
    return found


def each_source(given: Paths, *, follow_links: bool = False) -> Iterator[InputSource]:
    """Find what `find_sources` does, one after the other; one that is named twice comes twice."""
    items = [given] if isinstance(given, (str, Path)) else given
    for item in items:
        if "\0" not in str(item) and not follow_links and os.path.isdir(item):
            check_links(Path(item))
    for item in items:
        yield from _find(str(item))


def describe_left_out(given: Paths) -> str:
    """Count the videos in given folders, which are not taken from there; empty for none."""
    folders = [Path(item) for item in ([given] if isinstance(given, (str, Path)) else given)]
    found = [
        file
        for folder in folders
        if os.path.isdir(folder)
        for file in files_in(folder, deep=True)
        if file.suffix.lower() in VIDEO_SUFFIXES
    ]
    videos = "1 video" if len(found) == 1 else f"{len(found)} videos"
    return (
        f"{videos} in folders left out ({examples(map(str, found))}): name them themselves" if found else ""
    )


def find_images(given: Paths, *, follow_links: bool = False) -> list[Path]:
    """Find image files, all images in folders, and matches of globs, each once.

    Args:
        given: files, folders or globs.
        follow_links: follow symbolic links that lead out of a given folder.

    Raises:
        UserError: something given leads to nothing, or not to an image file.
    """
    found = find_sources(given, follow_links=follow_links)
    other = next((source.name for source in found if source.kind != "image"), None)
    if other is not None:
        raise UserError(f"'{other}' is not an image file: give files, folders or globs like 'photos/*.jpg'")
    return [Path(source.name) for source in found]


def source_of(name: str) -> InputSource:
    """The image or video of a file's path, an http address, or an address of fsspec. Raises UserError."""
    if re.match(r"https?://", name, re.IGNORECASE):
        try:
            return InputSource("url", name) if urlsplit(name).hostname else _no_address(name)
        except ValueError:
            return _no_address(name)
    return InputSource("remote", name) if is_address(name) else _file(Path(name))


def _find(item: str) -> Iterable[InputSource]:
    if re.match(r"https?://", item, re.IGNORECASE):
        return [source_of(item)]
    if re.match(r"[a-z][a-z0-9+.-]+://", item, re.IGNORECASE):
        return map(source_of, names_in(item) if _is_list(item) else find_remote(item))
    path = Path(item)
    try:
        if path.is_dir():
            return _images_in(path)
        if path.exists():
            return map(source_of, _named_by(str(path)))
    except OSError as error:
        raise UserError(
            f"'{item}' cannot be looked up ({error.strerror or error}): give files, folders or globs"
        ) from None
    if camera := re.fullmatch(r"(?:camera:)?(\d+)", item):
        return [InputSource("camera", f"camera:{camera[1]}")]
    files = [name for name in sorted(glob.glob(item, recursive=True)) if Path(name).is_file()]
    if not files:
        raise UserError(f"no image found at '{item}': give files, folders or globs like 'photos/*.jpg'")
    return map(source_of, itertools.chain.from_iterable(map(_named_by, files)))


def _named_by(file: str) -> Iterable[str]:
    return names_in(file) if _is_list(file) else [file]


def _is_list(name: str) -> bool:
    """Whether a file of that name is read as a list of images."""
    return name.lower().endswith(LIST_SUFFIXES)


def _no_address(item: str) -> NoReturn:
    raise UserError(f"'{item}' is not an address: write it as http://host/file.jpg")


def _images_in(folder: Path) -> list[InputSource]:
    """The images of a folder and the folders in it, and the pictures that will be named as skipped."""
    files = files_in(folder, deep=True)
    images = [file for file in files if is_image_name(file)]
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    unread = [file for file in files if file.suffix.lower() in UNREAD_SUFFIXES]
    if images:
        return [InputSource("image", str(file)) for file in sorted([*images, *unread])]
    if videos:
        raise UserError(f"no image found at '{folder}': name its videos themselves, such as '{videos[0]}'")
    if unread:
        raise UserError(
            f"no image found at '{folder}' that can be read: convert its {len(unread)} pictures, such as "
            f"'{unread[0].name}', to PNG or JPEG"
        )
    raise UserError(
        f"no image found at '{folder}': it has no file with the suffix .bmp, .jpg, .png or the like"
    )


def _file(path: Path) -> InputSource:
    return InputSource("video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", str(path))


def check_video(sources: Sequence[InputSource]) -> None:
    """Raise UserError where a source is a video and the extra that reads videos is not installed."""
    video = next((source.name for source in sources if source.is_video), None)
    if video is not None:
        try:
            import av  # noqa: F401, PLC0415  (of an extra)
        except ImportError:
            raise missing_extra(f"reading '{video}'", "video") from None


def read_frames(
    sources: Sequence[InputSource],
    *,
    stride: int,
    limit: int | None,
    before: Callable[[int], None] | None = None,
) -> Iterator[Frame | ReadFailure]:
    """Read the images and frames of all sources in order, the next ones ahead in threads.

    Args:
        sources: what to read.
        stride: of a video or camera, every how many frames one is taken.
        limit: of a video or camera, the most frames that are taken; None: all.
        before: called with the index of each image before it is read; nothing is then read ahead.
    """
    for kind, group in itertools.groupby(enumerate(sources), key=lambda item: item[1].kind):
        if kind in _AHEAD:
            tasks = (partial(_read_one, index, source) for index, source in group)
            yield from ahead(tasks, _AHEAD[kind]) if before is None else _told_before(tasks, before)
            continue
        for index, source in group:
            if before is not None:
                before(index)
            if kind == "url":
                yield from _read_url(index, source, stride, limit)
            else:
                yield from _read_video(index, source, source.name, stride, limit)


def count_frames(sources: Sequence[InputSource], *, stride: int, limit: int | None) -> int | None:
    """Return how many images and frames there will be, or None where that is not known beforehand."""
    total = 0
    for source in sources:
        if source.kind == "video":
            from msefpn.inference.video import count_video  # noqa: PLC0415  (of an extra)

            frames = count_video(source.name)
            if frames is None:
                continue
        else:
            frames = int(source.kind in _AHEAD)
        if not frames:
            return None
        total += min(number for number in (-(-frames // stride), limit) if number)
    return total


def _told_before(
    tasks: Iterable[partial[Frame | ReadFailure]], before: Callable[[int], None]
) -> Iterator[Frame | ReadFailure]:
    for task in tasks:
        before(task.args[0])
        yield task()


def _read_one(index: int, source: InputSource) -> Frame | ReadFailure:
    if source.kind == "image":
        return _read_image(index, source.name, Path(source.name))
    with tempfile.TemporaryDirectory(prefix="msefpn-") as folder:
        path = Path(folder) / "picture"
        try:
            _fetch(source.name, path)
        except UserError as error:
            return ReadFailure(index, f"{source.name}: {error}", passing=not _is_missing(source.name))
        except ImageFault as error:
            return ReadFailure(index, f"{source.name}: {error}")
        return _read_image(index, source.name, path)


def _fetch(address: str, path: Path) -> None:
    """Copy a picture to this machine. Raises UserError; ImageFault: it is too large."""
    with remote.open_address(address) as file, path.open("wb") as copy:
        while part := file.read(_CHUNK):
            copy.write(part)
            if copy.tell() > MAX_PICTURE:
                raise ImageFault(f"the file has more than {MAX_PICTURE / 2**20:.0f} MB, which is the limit")


def _is_missing(address: str) -> bool:
    """Whether a file system says that nothing is there; not where it does not answer."""
    try:
        return remote.kind_at(address) is None
    except UserError:
        return False


def _read_image(index: int, name: str, path: Path) -> Frame | ReadFailure:
    try:
        pixels = read_image(path)
        return Frame(index, pixels, told=_told(name, path))
    except (OSError, ImageFault) as error:
        text = getattr(error, "strerror", None) or str(error)
        return ReadFailure(index, f"{name}: {' '.join(text.split()) or type(error).__name__}")


def _told(name: str, path: Path) -> str:
    """What of an image file was not taken as it stands; empty for nothing."""
    header = read_header(path)
    texts = [f"{header.frames} frames, the first is taken"] * (header.frames > 1)
    texts += [f"16-bit values, scaled from {header.bits} bits"] * header.mode.startswith("I")
    return f"{name}: {'; '.join(texts)}" if texts else ""


def _read_url(
    index: int, source: InputSource, stride: int, limit: int | None
) -> Iterator[Frame | ReadFailure]:
    from msefpn.inference.download import download  # noqa: PLC0415  (rarely needed)

    with tempfile.TemporaryDirectory(prefix="msefpn-") as folder:
        try:
            path, kind = download(source.name, Path(folder))
        except ImageFault as error:
            yield ReadFailure(index, f"{source.name}: {error}")
            return
        if kind.startswith("video/") or source.is_video:
            yield from _read_video(index, InputSource("video", str(path)), source.name, stride, limit)
            return
        result = _read_image(index, source.name, path)
        if isinstance(result, ReadFailure) and kind and not kind.startswith(("image/", "application/octet")):
            result = ReadFailure(index, f"{source.name}: not an image, the server says it is {kind}")
        yield result


def _read_video(
    index: int, source: InputSource, name: str, stride: int, limit: int | None
) -> Iterator[Frame | ReadFailure]:
    """Frames of a video or camera; the next ones are decoded in a thread."""
    try:
        from msefpn.inference.video import decode_video  # noqa: PLC0415  (of an extra)
    except ImportError:
        yield ReadFailure(index, str(missing_extra(f"{name}: reading a video", "video")))
        return
    frames = decode_video(index, source, name, stride, limit)
    made = ahead(itertools.repeat(partial(next, frames, None)), workers=1)
    with contextlib.closing(frames), contextlib.closing(made):
        yield from itertools.takewhile(lambda item: item is not None, made)


def ahead(tasks: Iterator[Callable[[], T]], workers: int) -> Generator[T]:
    """Results of tasks in order; up to two more than there are workers are made ahead."""
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
