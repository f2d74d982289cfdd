"""The options that `predict` and `stream` share; imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msefpn.config import check_bounds, option, parse_size
from msefpn.errors import UserError, unknown_name
from msefpn.inference.options import DetectionOptions


@dataclass(frozen=True)
class PredictionOptions:
    """How to detect, and what to keep."""

    score: float = option(0.3, "lowest score of the detections that are kept, 0 to 1")
    classes: tuple[str, ...] | None = option(None, "names of the classes to detect (default: all)")
    proposals: Path | None = option(
        None, "regions for fast_rcnn: predictions.json of another prediction on the same images"
    )
    tile: bool = option(False, "detect on overlapping tiles of large images too, for small objects")
    tile_size: str | None = option(
        None, "size of a tile, pixels: 640 or 1333x800 (default: the size that images are resized to)"
    )
    overlap: float = option(0.2, "overlap of neighbouring tiles, as a fraction of a side", low=0, below=0.9)
    stride: int = option(1, "detect on every n-th frame of a video or camera", low=1)
    frames: int | None = option(None, "most frames of a video or camera (default: all)", low=1)
    batch: int = option(1, "images, frames or tiles at a time", low=1)
    size: str | None = option(
        None, "longest x shortest side, pixels, that images are resized to fit into (default: the run's)"
    )
    device: str = option("auto", "auto, cpu or gpu", choices=("auto", "cpu", "gpu"))
    compile: bool = option(False, "compile the detector first (inductor); it takes a minute or more")
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    """Soft-NMS and test-time augmentation."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 0 <= self.score <= 1:
            raise UserError(f"score is {self.score}: it must be 0 to 1")
        for size in (self.size, self.tile_size):
            if size is not None:
                parse_size(size)
        if self.tile_size is not None and not self.tile:
            raise UserError(f"tile-size {self.tile_size} without --tile: add it, or leave the size out")
        self.detection.check_size(self.size)

    @classmethod
    def given(cls, **values: Any) -> PredictionOptions:
        """Build from the values that are not None, as a user gives them. Raises UserError."""
        merging = DetectionOptions.__dataclass_fields__.keys()
        known = (cls.__dataclass_fields__.keys() | merging) - {"detection"}
        for name in values.keys() - known:
            raise unknown_name("option", name, sorted(known))
        detection = DetectionOptions.given(**{name: values.pop(name) for name in values.keys() & merging})
        chosen = {name: value for name, value in values.items() if value is not None}
        for name in chosen.keys() & {"size", "tile_size"}:
            chosen[name] = str(chosen[name])
        if "proposals" in chosen:
            chosen["proposals"] = Path(chosen["proposals"])
        if "classes" in chosen:
            names = chosen["classes"]
            chosen["classes"] = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
        return cls(**chosen, detection=detection)
