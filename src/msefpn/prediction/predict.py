"""Prediction: a run and sources into pictures, tables and texts, or one result after the other."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msefpn.errors import UserError
from msefpn.inference.detect import Predictions
from msefpn.inference.predictor import Predictor
from msefpn.inference.tiles import look_in_tiles
from msefpn.prediction.request import Prediction, Request
from msefpn.prediction.sources import Fault, Picture, count_pictures, read_pictures
from msefpn.prediction.writers import WRITERS, About, Looked, Writer, entries_of
from msefpn.runs.console import Bar, say, show_dropped
from msefpn.runs.folder import new_folder

if TYPE_CHECKING:
    import supervision as sv


class Result(NamedTuple):
    """What was found on an image or a frame."""

    source: str
    """File, address or camera that it comes from."""
    frame: int | None
    """Of a video or camera, counted from 0; None: it is an image."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    detections: sv.Detections
    """xyxy (M, 4) in its pixels, confidence, class_id 0..K-1, data["class_name"], and mask or None."""


def predict(plan: Prediction, *, device: str) -> list[dict[str, Any]]:
    """Detect as planned and write the results; see `msefpn.commands.predict.predict`."""
    request = plan.request
    predictor = Predictor.open(request.run, size=request.size, device=device)
    about = About(plan.out, request.sources, predictor.classes, predictor.category_ids)
    results: list[dict[str, Any]] = []
    faults: list[Fault] = []
    pictures = num_dropped = 0
    began = time.monotonic()
    with new_folder(plan.out):
        total = count_pictures(request.sources, stride=request.stride, most=request.frames)
        with contextlib.ExitStack() as stack, Bar("predict", total) as bar:
            writers = [_closing(stack, WRITERS[kind](about)) for kind in plan.save]
            with _stopped_by_hand(request) as stopped:
                for number, picture, found in _look(request, predictor, faults.append):
                    looked = Looked(picture, found, entries_of(found, picture, number, about))
                    for writer in writers:
                        writer.add(looked)
                    results += looked.entries
                    pictures += 1
                    num_dropped += found.num_dropped
                    bar.seen(1)
        if not pictures and not stopped:
            raise _nothing_read(request, faults)
    speed = pictures / max(time.monotonic() - began, 1e-9)
    _tell(faults)
    show_dropped(num_dropped)
    skipped = sum(not fault.partly for fault in faults)
    say(
        f"{len(results)} objects in {pictures} images{f', {skipped} skipped' if skipped else ''}, "
        f"{speed:.1f} images/s: {plan.out}"
    )
    if stopped and not _only_cameras(request):
        raise KeyboardInterrupt(f"interrupted: what was found until then is in {plan.out}")
    return results


def stream(request: Request, *, device: str) -> Iterator[Result]:
    """Detect and give each picture's result as it comes; see `msefpn.commands.predict.stream`."""
    from msefpn.inference.draw import as_supervision  # noqa: PLC0415  (it takes a while, and not all draw)

    predictor = Predictor.open(request.run, size=request.size, device=device)
    faults: list[Fault] = []
    result = None

    def warn(fault: Fault) -> None:
        faults.append(fault)
        warnings.warn(fault.text if fault.partly else f"skipped: {fault.text}", stacklevel=3)

    for _, picture, found in _look(request, predictor, warn):
        detections = as_supervision(found, predictor.classes, picture.pixels.shape[:2])
        result = Result(request.sources[picture.source].name, picture.frame, picture.pixels, detections)
        yield result
    if result is None:
        raise _nothing_read(request, faults)


def _look(
    request: Request, predictor: Predictor, fault: Callable[[Fault], None]
) -> Iterator[tuple[int, Picture, Predictions]]:
    """Number, from 0 over all that was given, picture, and what was found on it that is asked for."""
    wanted = None
    if request.classes is not None:
        wanted = [row for row, name in enumerate(predictor.classes) if name in request.classes]

    def readable() -> Iterator[tuple[int, Picture]]:
        read = read_pictures(request.sources, stride=request.stride, most=request.frames)
        for number, item in enumerate(read):
            if isinstance(item, Picture):
                yield number, item
            else:
                fault(item)

    for group in _batched(readable(), request.batch if request.tiling is None else 1):
        pictures = [picture for _, picture in group]
        for (number, picture), found in zip(group, _found(request, predictor, pictures), strict=True):
            kept = found if wanted is None else found.where(np.isin(found.labels, wanted))
            yield number, picture, kept


def _found(request: Request, predictor: Predictor, pictures: Sequence[Picture]) -> list[Predictions]:
    """What is found on some pictures, together or in tiles."""
    if request.tiling is None:
        regions = request.proposals and [request.proposals[picture.source] for picture in pictures]
        return predictor([picture.pixels for picture in pictures], score=request.score, proposals=regions)

    def look(images: Sequence[NDArray[np.uint8]]) -> list[Predictions]:
        return predictor(images, score=request.score)

    tile, overlap = request.tiling.size or predictor.size, request.tiling.overlap
    return [
        look_in_tiles(look, picture.pixels, tile=tile, overlap=overlap, batch=request.batch)
        for picture in pictures
    ]


def _batched(items: Iterable[tuple[int, Picture]], size: int) -> Iterator[list[tuple[int, Picture]]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _closing(stack: contextlib.ExitStack, writer: Writer) -> Writer:
    stack.callback(writer.close)
    return writer


@contextlib.contextmanager
def _stopped_by_hand(request: Request) -> Iterator[list[bool]]:
    """Let Ctrl-C end the body, so that what was found is written; the list then holds something."""
    stopped: list[bool] = []
    if _only_cameras(request):
        say("looking at the camera until Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        try:
            yield stopped
        except KeyboardInterrupt:
            stopped.append(True)
            raise


def _only_cameras(request: Request) -> bool:
    return all(source.kind == "camera" for source in request.sources)


def _nothing_read(request: Request, faults: Sequence[Fault]) -> UserError:
    many = f"none of the {len(request.sources)} images can be read: "
    return UserError(f"{many if len(request.sources) > 1 else ''}{faults[0].text}: give other files")


def _tell(faults: Sequence[Fault]) -> None:
    say(*(fault.text if fault.partly else f"skipped: {fault.text}" for fault in faults))
