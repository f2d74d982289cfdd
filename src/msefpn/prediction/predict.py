"""Prediction: a run and sources to pictures, tables and texts, or to one result after the other."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msefpn.config import parse_size
from msefpn.errors import UserError, missing_extra, unknown_name
from msefpn.inference.detect import Predictions, check_proposals_given
from msefpn.inference.frames import Frame, InputSource, ReadFailure
from msefpn.inference.predictor import Predictor
from msefpn.inference.sources import check_video, count_frames, read_frames
from msefpn.prediction.request import PredictionOptions
from msefpn.prediction.writers import RESULT_WRITERS, Output, Writer, entries_of
from msefpn.runs.console import Bar, say, show_dropped
from msefpn.runs.folder import check_out, free_folder, new_folder

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True)
class ImageResult:
    """The predictions for an image or a frame."""

    source: str
    """File, address or camera that the image comes from."""
    frame: int | None
    """Number of the frame in a video or camera, from 0; None: an image."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    predictions: Predictions
    """Arrays over M detections, best first: boxes (M, 4) xyxy in pixels of `image`, scores, labels, masks."""
    classes: tuple[str, ...]
    """Names of the K classes that `predictions.labels` index."""

    @property
    def detections(self) -> supervision.Detections:
        """The same as `supervision.Detections`, with `data["class_name"]`; needs the extra `supervision`.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about OpenCV, which it does not need
                import supervision  # noqa: PLC0415  (of an extra)
        except ImportError:
            raise missing_extra("supervision.Detections", "supervision") from None
        found = self.predictions
        return supervision.Detections(
            xyxy=found.boxes,
            confidence=found.scores,
            class_id=found.labels.astype(int),
            mask=found.decoded_masks(self.image.shape[:2]),
            data={"class_name": np.array([self.classes[label] for label in found.labels], dtype=str)},
        )


@dataclass(frozen=True)
class _Request:
    """Everything that a prediction needs, opened and checked."""

    predictor: Predictor
    sources: list[InputSource]
    options: PredictionOptions
    proposals: list[NDArray[np.float32]] | None
    """Regions (r, 4) of each source, xyxy, pixels; None: the detector finds its own."""

    @classmethod
    def open(cls, run: Path, sources: list[InputSource], options: PredictionOptions) -> _Request:
        """Open the detector and check that all fits. Raises UserError."""
        check_video(sources)
        predictor = Predictor.open(
            run,
            size=options.size,
            device=options.device,
            compile=options.compile,
            options=options.detection,
        )
        check_proposals_given(predictor.detector, options.proposals is not None, run)
        for name in options.classes or ():
            if name not in predictor.classes:
                raise unknown_name("class", name, predictor.classes)
        proposals = None if options.proposals is None else _read_proposals(options, sources)
        return cls(predictor, sources, options, proposals)

    def results(self, failed: Callable[[ReadFailure], None]) -> Iterator[tuple[int, Frame, Predictions]]:
        """Number of the image among all, image, and its predictions of the classes asked for.

        `failed` is called with what cannot be read.
        """
        options, known = self.options, self.predictor.classes
        chosen = known if options.classes is None else options.classes
        wanted = [known.index(name) for name in chosen]
        frames = self._frames(failed)
        while group := list(itertools.islice(frames, 1 if options.tile else options.batch)):
            found = self._detect([frame for _, frame in group])
            for (number, frame), predictions in zip(group, found, strict=True):
                yield number, frame, predictions.where(np.isin(predictions.labels, wanted))

    def _frames(self, failed: Callable[[ReadFailure], None]) -> Iterator[tuple[int, Frame]]:
        read = read_frames(self.sources, stride=self.options.stride, limit=self.options.frames)
        for number, item in enumerate(read):
            if isinstance(item, Frame):
                yield number, item
            else:
                failed(item)

    def _detect(self, frames: Sequence[Frame]) -> list[Predictions]:
        options, images = self.options, [frame.pixels for frame in frames]
        if not options.tile:
            regions = self.proposals and [self.proposals[frame.source] for frame in frames]
            return self.predictor(images, score=options.score, proposals=regions)

        from msefpn.inference.tiles import detect_in_tiles  # noqa: PLC0415  (rarely needed)

        return [
            detect_in_tiles(
                lambda views: self.predictor(views, score=options.score),
                pixels,
                tile=parse_size(options.tile_size) if options.tile_size else self.predictor.size,
                overlap=options.overlap,
                batch=options.batch,
            )
            for pixels in images
        ]

    def nothing_read(self, failures: Sequence[ReadFailure]) -> UserError:
        """Say that no image could be read."""
        many = f"none of the {len(self.sources)} images can be read: " if len(self.sources) > 1 else ""
        return UserError(f"{many}{failures[0].text}: give other files")


def predict(
    run: Path,
    sources: list[InputSource],
    options: PredictionOptions,
    *,
    out: Path | None,
    save: Sequence[str],
) -> list[dict[str, Any]]:
    """Detect and write the results; see `msefpn.commands.predict.predict`."""
    for kind in save:
        if kind not in RESULT_WRITERS:
            raise unknown_name("kind of results", kind, RESULT_WRITERS)
    if not save:
        raise UserError(f"nothing to save: give some of {', '.join(RESULT_WRITERS)}")
    out = out or free_folder(Path("predictions"))
    check_out(out)
    request = _Request.open(run, sources, options)
    output = Output(out, request.sources, request.predictor.classes, request.predictor.category_ids)
    results: list[dict[str, Any]] = []
    failures: list[ReadFailure] = []
    images = num_dropped = 0
    began = time.monotonic()
    with new_folder(out):
        total = count_frames(request.sources, stride=options.stride, limit=options.frames)
        with contextlib.ExitStack() as stack, Bar("predict", total) as bar:
            writers = [_closing(stack, RESULT_WRITERS[kind](output)) for kind in dict.fromkeys(save)]
            with _stoppable(request) as stopped:
                for number, frame, found in request.results(failures.append):
                    entries = entries_of(found, frame, number, output)
                    for writer in writers:
                        writer.add(frame, found, entries)
                    results += entries
                    images += 1
                    num_dropped += found.num_dropped
                    bar.seen(1)
        if not images and not stopped:
            raise request.nothing_read(failures)
    speed = images / max(time.monotonic() - began, 1e-9)
    say(*map(_told, failures))
    show_dropped(num_dropped)
    skipped = sum(not failure.partly for failure in failures)
    say(
        f"{len(results)} objects in {images} images{f', {skipped} skipped' if skipped else ''}, "
        f"{speed:.1f} images/s: {out}"
    )
    if stopped and not _only_cameras(request):
        raise KeyboardInterrupt(f"interrupted: what was found until then is in {out}")
    return results


def stream(run: Path, sources: list[InputSource], options: PredictionOptions) -> Iterator[ImageResult]:
    """Check, then detect on one image after the other; see `msefpn.commands.predict.stream`."""
    return _results(_Request.open(run, sources, options))


def _results(request: _Request) -> Iterator[ImageResult]:
    failures: list[ReadFailure] = []
    result = None

    def warn(failure: ReadFailure) -> None:
        failures.append(failure)
        warnings.warn(_told(failure), stacklevel=3)

    for _, frame, found in request.results(warn):
        source = request.sources[frame.source].name
        result = ImageResult(source, frame.number, frame.pixels, found, request.predictor.classes)
        yield result
    if result is None:
        raise request.nothing_read(failures)


def _read_proposals(options: PredictionOptions, sources: list[InputSource]) -> list[NDArray[np.float32]]:
    """The regions of each source, all of them image files. Raises UserError."""
    from msefpn.data.images import ImageFault, read_header  # noqa: PLC0415  (rarely needed)
    from msefpn.data.proposals import proposals_of_files  # noqa: PLC0415

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
def _stoppable(request: _Request) -> Iterator[list[bool]]:
    """Let Ctrl-C end the body, so that what was found is written; the list is then not empty."""
    stopped: list[bool] = []
    if _only_cameras(request):
        say("detecting on the camera until Ctrl-C")
    try:
        yield stopped
    except KeyboardInterrupt:
        stopped.append(True)


def _only_cameras(request: _Request) -> bool:
    return all(source.kind == "camera" for source in request.sources)


def _told(failure: ReadFailure) -> str:
    return failure.text if failure.partly else f"skipped: {failure.text}"
