"""Prediction: a run and sources to pictures, tables and texts, or to one result after the other."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msefpn.errors import UserError
from msefpn.inference.detect import Predictions, inputs_read
from msefpn.inference.frames import Frame, InputSource, ReadFailure
from msefpn.inference.options import DetectionOptions
from msefpn.inference.sources import count_frames, read_frames
from msefpn.names import check_proposals_given
from msefpn.plain import printable
from msefpn.prediction.loaded import LoadedDetector
from msefpn.prediction.request import PredictionOptions
from msefpn.prediction.results import ImageResult
from msefpn.prediction.writers import RESULT_WRITERS, Output, Writer, entries_of
from msefpn.runs.console import Bar, say, show_dropped
from msefpn.runs.folder import new_folder


@dataclass(frozen=True)
class Request:
    """Everything that a prediction needs, opened and checked."""

    detector: LoadedDetector
    sources: list[InputSource]
    options: PredictionOptions
    proposals: list[NDArray[np.float32]] | None
    """Regions (r, 4) of each source, xyxy, pixels; None: the detector finds its own."""

    @classmethod
    def open(
        cls, run: Path | LoadedDetector, sources: list[InputSource], options: PredictionOptions
    ) -> Request:
        """Open the detector and check that all fits. Raises UserError."""
        if isinstance(run, Path):
            run = LoadedDetector.open(
                run,
                size=options.size,
                device=options.device,
                compile=options.compile,
                options=options.detection,
            )
        else:
            if options.detection != DetectionOptions():
                flags = options.detection.flags()
                raise UserError(f"{flags} given for a detector that is loaded: give it to msefpn.load")
            for name, value in vars(options).items():
                if name in ("size", "device", "compile") and value not in (None, "auto", False):
                    raise UserError(f"{name} is given for a detector that is loaded: give it to msefpn.load")
        check_proposals_given(inputs_read(run.detector), options.proposals is not None, run.path)
        run.check(options)
        proposals = None if options.proposals is None else _read_proposals(options, sources)
        return cls(run, sources, options, proposals)

    def results(
        self, failed: Callable[[ReadFailure], None], before: Callable[[int], None] | None = None
    ) -> Iterator[tuple[int, Frame, Predictions]]:
        """Number of the image among all, image, and its predictions of the classes asked for.

        `failed` is called with what cannot be read; `before`: see `read_frames`.
        """
        options, frames = self.options, self._frames(failed, before)
        while group := list(itertools.islice(frames, 1 if options.tile else options.batch)):
            images = [frame.pixels for _, frame in group]
            regions = self.proposals and [self.proposals[frame.source] for _, frame in group]
            found = self.detector.detect(images, options, regions)
            for (number, frame), predictions in zip(group, found, strict=True):
                yield number, frame, predictions

    def _frames(
        self, failed: Callable[[ReadFailure], None], before: Callable[[int], None] | None
    ) -> Iterator[tuple[int, Frame]]:
        read = read_frames(self.sources, stride=self.options.stride, limit=self.options.frames, before=before)
        for number, item in enumerate(read):
            if isinstance(item, Frame):
                yield number, item
            else:
                failed(item)

    def nothing_read(self, failures: Sequence[ReadFailure]) -> UserError:
        """Say that no image could be read."""
        many = f"none of the {len(self.sources)} images can be read: " if len(self.sources) > 1 else ""
        return UserError(f"{many}{failures[0].text}: give other files")


def predict(
    run: Path | LoadedDetector,
    sources: list[InputSource],
    options: PredictionOptions,
    *,
    out: Path,
    kinds: Sequence[str],
) -> list[dict[str, Any]]:
    """Detect and write results of some kinds, of `RESULT_KINDS`; see `msefpn.commands.predict.predict`."""
    request = Request.open(run, sources, options)
    output = Output(out, request.sources, request.detector.classes, request.detector.category_ids)
    results: list[dict[str, Any]] = []
    failures: list[ReadFailure] = []
    told: list[str] = []
    images = num_dropped = 0
    began = time.monotonic()
    with new_folder(out):
        total = count_frames(request.sources, stride=options.stride, limit=options.frames)
        with contextlib.ExitStack() as stack, Bar("predict", total) as bar:
            writers = [_closing(stack, RESULT_WRITERS[kind](output)) for kind in kinds]
            with _stoppable(request) as stopped:
                for number, frame, found in request.results(failures.append):
                    entries = entries_of(found, frame, number, output)
                    for writer in writers:
                        writer.add(frame, found, entries)
                    results += entries
                    images += 1
                    told += [frame.told] * bool(frame.told)
                    num_dropped += found.num_dropped
                    bar.seen(1)
        if not images and not stopped:
            raise request.nothing_read(failures)
    speed = images / max(time.monotonic() - began, 1e-9)
    say(*told, *map(_told, failures))
    show_dropped(num_dropped)
    skipped = sum(not failure.partly for failure in failures)
    say(
        f"{len(results)} objects in {images} images{f', {skipped} skipped' if skipped else ''}, "
        f"{speed:.1f} images/s: {out}"
    )
    if stopped and not _only_cameras(request):
        raise KeyboardInterrupt(f"interrupted: what was found until then is in {out}")
    return results


def stream(
    run: Path | LoadedDetector, sources: list[InputSource], options: PredictionOptions
) -> Iterator[ImageResult]:
    """Check, then detect on one image after the other; see `msefpn.commands.predict.stream`."""
    return _results(Request.open(run, sources, options))


def _results(request: Request) -> Iterator[ImageResult]:
    failures: list[ReadFailure] = []
    result = None

    def warn(failure: ReadFailure) -> None:
        failures.append(failure)
        warnings.warn(printable(_told(failure)), stacklevel=3)

    for _, frame, found in request.results(warn):
        source, detector = request.sources[frame.source].name, request.detector
        known = detector.classes, detector.category_ids
        if frame.told:
            warnings.warn(printable(frame.told), stacklevel=2)
        result = ImageResult(source, frame.number, frame.pixels, found, *known, frame.time)
        yield result
    if result is None:
        raise request.nothing_read(failures)


def _read_proposals(options: PredictionOptions, sources: list[InputSource]) -> list[NDArray[np.float32]]:
    """The regions of each source, all of them image files. Raises UserError."""
    from msefpn.data.images import ImageFault, read_header  # noqa: PLC0415  (rarely needed)
    from msefpn.data.proposals import proposals_of_files  # noqa: PLC0415  needed by one detector

    assert options.proposals is not None
    if options.tile:
        raise UserError("proposals cannot be used with tiles: leave out --tile")
    other = next((source.name for source in sources if source.kind != "image"), None)
    if other is not None:
        raise UserError(f"'{other}' is not an image file, and only these have proposals: leave it out")
    files, sizes = [Path(source.name) for source in sources], []
    for file in files:
        try:
            sizes.append(read_header(file).size)
        except (OSError, ImageFault):
            sizes.append((1 << 30, 1 << 30))  # it is skipped later; its regions are not checked
    return proposals_of_files(options.proposals, files, sizes)


def _closing(stack: contextlib.ExitStack, writer: Writer) -> Writer:
    stack.callback(writer.close)
    return writer


@contextlib.contextmanager
def _stoppable(request: Request) -> Iterator[list[bool]]:
    """Let Ctrl-C end the body, so that what was found is written; the list is then not empty."""
    stopped: list[bool] = []
    if _only_cameras(request):
        say("detecting on the camera until Ctrl-C")
    try:
        yield stopped
    except KeyboardInterrupt:
        stopped.append(True)


def _only_cameras(request: Request) -> bool:
    return all(source.kind == "camera" for source in request.sources)


def _told(failure: ReadFailure) -> str:
    return failure.text if failure.partly else f"skipped: {failure.text}"
