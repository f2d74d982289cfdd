"""A loaded detector: images in memory to results."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from msefpn.config import parse_size
from msefpn.errors import UserError
from msefpn.inference.detect import Detects, Predictions
from msefpn.inference.frames import Frame, InputSource
from msefpn.inference.options import DetectionOptions
from msefpn.inference.predictor import Predictor
from msefpn.inference.tiles import detect_in_tiles
from msefpn.prediction.pixels import ImageInput, read_pixels
from msefpn.prediction.request import ImageOptions, check_classes, check_kinds
from msefpn.prediction.results import ImageResult
from msefpn.prediction.writers import RESULT_WRITERS, Output, entries_of
from msefpn.runs.folder import check_out, new_folder


class PredictArguments(TypedDict, total=False):
    """The keyword arguments of `LoadedDetector.predict`, for the type checker."""

    score: float
    iou: float | None
    max_per_image: int | None
    classes: Sequence[str] | str | None
    tile: bool
    tile_size: str | int | None
    overlap: float
    batch: int
    out: str | Path | None
    save: Sequence[str] | str


class LoadedDetector:
    """A trained detector, or an exported file of one, ready for images; several threads may share one.

    Attributes:
        path: what was loaded.
        predictor: detects on arrays.
        detector: the torch module, in evaluation mode; `train()` makes it trainable. Of an exported file:
            what runs it.
        classes: names of its K classes.
        category_ids: their ids in the annotation file, same order.
        size: longest and shortest side that images are resized to fit into, pixels.
        device: where it runs.

    Args:
        path: see above.
        predictor: see above.
    """

    def __init__(self, path: Path, predictor: Predictor) -> None:
        self.path = path
        self.predictor = predictor
        self.detector: Detects = predictor.detector
        self.classes = predictor.classes
        self.category_ids = predictor.category_ids
        self.size = predictor.size
        self.device = predictor.device

    @classmethod
    def open(
        cls, path: Path, *, size: str | None, device: str, compile: bool, options: DetectionOptions
    ) -> LoadedDetector:
        """Load; see `msefpn.load`."""
        opened = Predictor.open(path, size=size, device=device, compile=compile, options=options)
        return cls(path, opened)

    def __repr__(self) -> str:
        side, classes = "x".join(map(str, self.size)), len(self.classes)
        what = self.detector.config.detector
        return f"LoadedDetector({self.path}: {what}, {classes} classes, size {side}, {self.device})"

    @overload
    def predict(self, images: ImageInput, **options: Unpack[PredictArguments]) -> ImageResult: ...

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], **options: Unpack[PredictArguments]
    ) -> list[ImageResult]: ...

    def predict(
        self,
        images: ImageInput | list[Any] | tuple[Any, ...],
        *,
        score: float = 0.3,
        iou: float | None = None,
        max_per_image: int | None = None,
        classes: Sequence[str] | str | None = None,
        tile: bool = False,
        tile_size: str | int | None = None,
        overlap: float = 0.2,
        batch: int = 1,
        out: str | Path | None = None,
        save: Sequence[str] | str = ("pictures", "json"),
    ) -> ImageResult | list[ImageResult]:
        """Detect on an image, or on each image of a list. Nothing is written unless `out` is given.

        Args:
            images: a numpy array (H, W, 3), or (H, W) grey, of uint8 or of floats from 0 to 1; a torch
                tensor (3, H, W), likewise; a PIL image; the path of an image file; or a list of these.
                Colours are red, green, blue. PIL images and files are turned by their EXIF orientation.
            score: lowest score of the detections that are kept.
            iou: detections that overlap a better one of their class by more are dropped; None: the run's.
            max_per_image: most detections of an image, the best; None: the run's.
            classes: names of the classes to detect; None: all.
            tile: detect on overlapping tiles of large images too, for small objects.
            tile_size: size of a tile, pixels, 640 or 1333x800; None: the size that images are resized to.
            overlap: overlap of neighbouring tiles, as a fraction of a side.
            batch: images or tiles at a time. In a batch of different sizes smaller images are padded, which
                necks that average over whole maps, such as MSE-FPN, see.
            out: folder for the results; it must be new or empty.
            save: what to write: pictures, json, csv, yolo, crops.

        Returns:
            A result, or a list of one for each image, in order.

        Raises:
            UserError: an image or an option cannot be used; the line names the place in the list.
        """
        options = ImageOptions.given(
            score=score,
            iou=iou,
            max_per_image=max_per_image,
            classes=classes,
            tile=tile,
            tile_size=tile_size,
            overlap=overlap,
            batch=batch,
        )
        kinds = check_kinds(save)
        if out is not None:
            check_out(Path(out))
        self.check(options)
        if self.detector.takes_proposals:
            what = self.detector.config.detector
            raise UserError(f"{self.path} is a {what}: give files and their proposals to msefpn.stream")
        several = isinstance(images, (list, tuple))
        given: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        results = self._results(given, several, options)
        if out is not None:
            self._write(results, Path(out), kinds)
        return results if several else results[0]

    def _results(self, images: Sequence[Any], several: bool, options: ImageOptions) -> list[ImageResult]:
        names = [f"images[{index}]" if several else "the image" for index in range(len(images))]
        pixels = [read_pixels(image, name) for image, name in zip(images, names, strict=True)]
        step = 1 if options.tile else options.batch
        groups = [pixels[start : start + step] for start in range(0, len(pixels), step)]
        found = [predictions for group in groups for predictions in self.detect(group, options)]
        return [
            ImageResult(_source(image, index), None, own, predictions, self.classes, self.category_ids)
            for index, (image, own, predictions) in enumerate(zip(images, pixels, found, strict=True))
        ]

    def check(self, options: ImageOptions) -> None:
        """Raise UserError for a class that it does not have, and a limit that it cannot change."""
        check_classes(options.classes, self.classes)
        given = {"iou": options.iou, "max_per_image": options.max_per_image}
        changed = next((name for name, value in given.items() if value is not None), None)
        if changed is not None and self.predictor.limits is None:
            raise UserError(
                f"{changed} cannot be changed in {self.path}: exported files, compiled detectors, "
                "merged views and heads without a Selection keep their own: leave it out"
            )

    def detect(
        self,
        images: Sequence[NDArray[np.uint8]],
        options: ImageOptions,
        proposals: Sequence[NDArray[np.float32]] | None = None,
    ) -> list[Predictions]:
        """Predictions for each of some images (H, W, 3), one batch, of the classes asked for.

        Args:
            images: RGB.
            options: they fit this detector, see `check`.
            proposals: for Fast R-CNN, the regions of each image, see `Predictor`.
        """
        most = options.max_per_image
        if most is not None and self.predictor.limits is not None:
            most = max(most, self.predictor.limits[1])  # the classes are chosen, and the best of them, below
        limits: dict[str, Any] = {"iou": options.iou, "max_per_image": most}
        if options.tile:
            tile = parse_size(options.tile_size) if options.tile_size else self.size
            found = [
                detect_in_tiles(
                    lambda views: self.predictor(views, score=options.score, **limits),
                    pixels,
                    tile=tile,
                    overlap=options.overlap,
                    batch=options.batch,
                    iou=options.iou,
                )
                for pixels in images
            ]
        else:
            found = self.predictor(images, score=options.score, proposals=proposals, **limits)
        chosen = self.classes if options.classes is None else options.classes
        wanted = [self.classes.index(name) for name in chosen]
        kept = [one.where(np.isin(one.labels, wanted)) for one in found]
        return [one.where(np.arange(len(one.scores))[: options.max_per_image]) for one in kept]

    def _write(self, results: Sequence[ImageResult], out: Path, kinds: Sequence[str]) -> None:
        sources = [InputSource("image", result.source) for result in results]
        output = Output(out, sources, self.classes, self.category_ids)
        with new_folder(out), contextlib.ExitStack() as stack:
            writers = [RESULT_WRITERS[kind](output) for kind in kinds]
            for writer in writers:
                stack.callback(writer.close)
            for index, result in enumerate(results):
                frame = Frame(index, result.image)
                entries = entries_of(result.predictions, frame, index, output)
                for writer in writers:
                    writer.add(frame, result.predictions, entries)


def _source(image: object, index: int) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"image-{index}"
