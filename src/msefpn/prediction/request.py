"""The options that `predict`, `stream` and a loaded detector share; imports neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from msefpn.config import parse_size
from msefpn.errors import UserError, unknown_name
from msefpn.inference.options import DetectionOptions
from msefpn.options import check_bounds, option

T = TypeVar("T", bound="ImageOptions")
RESULT_KINDS = ("pictures", "json", "csv", "yolo", "crops")
"""What `--save` can name."""
SHARD_KINDS = ("parquet", "json")
"""What it can name in shards; the names of other files depend on all images."""


@dataclass(frozen=True)
class ImageOptions:
    """How to detect on an image, and what to keep."""

    score: float = option(0.3, "lowest score of the detections that are kept, 0 to 1")
    iou: float | None = option(
        None,
        "detections of a class that overlap a better one by more are dropped, 0 to 1 (default: the run's)",
    )
    max_per_image: int | None = option(
        None, "most detections of an image or frame, the best (default: the run's)", low=1
    )
    classes: tuple[str, ...] | None = option(None, "names of the classes to detect (default: all)")
    tile: bool = option(False, "detect on overlapping tiles of large images too, for small objects")
    tile_size: str | None = option(
        None, "size of a tile, pixels: 640 or 1333x800 (default: the size that images are resized to)"
    )
    overlap: float = option(0.2, "overlap of neighbouring tiles, as a fraction of a side", low=0, below=0.9)
    batch: int = option(1, "images, frames or tiles at a time", low=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, value in (("score", self.score), ("iou", self.iou)):
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise UserError(f"{name} is {value}: it must be 0 to 1")
        if self.tile_size is not None:
            parse_size(self.tile_size)
            if not self.tile:
                raise UserError(f"tile-size {self.tile_size} without --tile: add it, or leave the size out")

    @classmethod
    def given(cls: type[T], **values: Any) -> T:
        """Build from the values that are not None, as a user gives them. Raises UserError."""
        for name in values.keys() - cls.__dataclass_fields__.keys():
            raise unknown_name("option", name, cls.__dataclass_fields__)
        chosen = {name: value for name, value in values.items() if value is not None}
        for name in chosen.keys() & {"size", "tile_size"}:
            chosen[name] = str(chosen[name])
        if "proposals" in chosen:
            chosen["proposals"] = Path(chosen["proposals"])
        if "classes" in chosen:
            names = chosen["classes"]
            chosen["classes"] = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        return cls(**chosen)


@dataclass(frozen=True)
class PredictionOptions(ImageOptions):
    """How to detect on files, videos and cameras."""

    proposals: Path | None = option(
        None, "regions for fast_rcnn: predictions.json of another prediction on the same images"
    )
    stride: int = option(1, "detect on every n-th frame of a video or camera", low=1)
    frames: int | None = option(None, "most frames of a video or camera (default: all)", low=1)
    size: str | None = option(
        None, "longest x shortest side, pixels, that images are resized to fit into (default: the run's)"
    )
    device: str = option("auto", "auto, cpu or gpu", choices=("auto", "cpu", "gpu"))
    compile: bool = option(False, "compile the detector first (inductor); it takes a minute or more")
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    """Soft-NMS and test-time augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            parse_size(self.size)
        self.detection.check_size(self.size)

    @classmethod
    def given(cls, **values: Any) -> PredictionOptions:
        """Build from the values that are not None, as a user gives them. Raises UserError."""
        merging = DetectionOptions.__dataclass_fields__.keys()
        known = (cls.__dataclass_fields__.keys() | merging) - {"detection"}
        for name in values.keys() - known:
            raise unknown_name("option", name, sorted(known))
        detection = DetectionOptions.given(**{name: values.pop(name) for name in values.keys() & merging})
        return super().given(**values, detection=detection)


@dataclass(frozen=True)
class ShardOptions:
    """Whether to predict in shards, and by how many processes or by Ray."""

    jobs: int | None = option(
        None,
        "number of processes that predict in shards, with a detector each; finished shards are kept",
        low=1,
    )
    ray: bool = option(False, "predict in shards by Ray Data; --jobs is then the number of its detectors")
    ray_address: str | None = option(
        None, "address of a Ray cluster, such as auto or HOST:6379 (default: a new Ray on this machine)"
    )
    shard_size: int | None = option(
        None, "number of images in a shard (default: a sixteenth of the images, at most 1000)", low=1
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.ray_address is not None and not self.ray:
            raise UserError(f"ray-address {self.ray_address} without --ray: add it, or leave the address out")
        if self.shard_size is not None and not self.wanted:
            raise UserError(f"shard-size {self.shard_size} without shards: add --jobs or --ray")

    @property
    def wanted(self) -> bool:
        """Whether to predict in shards."""
        return self.jobs is not None or self.ray

    @classmethod
    def taken(cls, options: dict[str, Any]) -> ShardOptions:
        """Remove the fields of this class from a user's options, and return them. Raises UserError."""
        given = {name: options.pop(name, None) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in given.items() if value is not None})


def check_kinds(save: Sequence[str] | str, *, in_shards: bool = False) -> list[str]:
    """The kinds of results to write, each once. Raises UserError for an unknown one, or none."""
    known = SHARD_KINDS if in_shards else RESULT_KINDS
    kinds = list(dict.fromkeys([save] if isinstance(save, str) else save))
    for kind in kinds:
        if kind in known:
            continue
        if kind in SHARD_KINDS:
            raise UserError(f"{kind} is written in shards: add --jobs or --ray, or save another kind")
        if kind in RESULT_KINDS:
            raise UserError(
                f"{kind} cannot be written of shards, whose images are predicted apart: save "
                f"{' or '.join(SHARD_KINDS)}, or leave out --jobs and --ray"
            )
        raise unknown_name("kind of results", kind, known)
    if not kinds:
        raise UserError(f"nothing to save: give some of {', '.join(known)}")
    return kinds


def check_classes(names: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise UserError for the name of a class that a detector does not have."""
    for name in names or ():
        if name not in known:
            raise unknown_name("class", name, known)
