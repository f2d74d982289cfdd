"""How candidates become detections, where not as in training; imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from msefpn.config import parse_size
from msefpn.errors import UserError, unknown_name
from msefpn.options import check_bounds, option


class View(NamedTuple):
    """One of the forms in which an image is detected on."""

    size: tuple[int, int]
    """Longest and shortest side that it is resized to fit into, pixels."""
    mirrored: bool
    """Left and right are exchanged."""


@dataclass(frozen=True)
class DetectionOptions:
    """Soft-NMS and test-time augmentation, which `evaluate`, `predict` and `stream` share."""

    soft_nms: str | None = option(
        None,
        "instead of NMS, lower the scores of overlapping boxes: linear or gaussian (arXiv 1704.04503)",
        choices=("linear", "gaussian"),
    )
    sigma: float | None = option(None, "width of gaussian soft-NMS (default: 0.5)", above=0)
    flip: bool = option(False, "also detect on the mirrored image, and merge what is found")
    scales: tuple[str, ...] | None = option(
        None, "detect at each of these sizes, such as 1333x640 1333x800, and merge what is found"
    )

    trust: bool = option(False, "run a .pt2 file, which can execute anything; not needed for other files")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.sigma is not None and self.soft_nms != "gaussian":
            raise UserError(f"sigma {self.sigma} without --soft-nms gaussian: add it, or leave sigma out")
        sizes = [parse_size(size) for size in self.scales or ()]
        if len(set(sizes)) < len(sizes):
            raise UserError(f"scales {' '.join(self.scales or ())}: give each size once")

    @classmethod
    def given(cls, **values: Any) -> DetectionOptions:
        """Build from the values that are not None, as a user gives them. Raises UserError."""
        for name in values.keys() - cls.__dataclass_fields__.keys():
            raise unknown_name("option", name, cls.__dataclass_fields__)
        chosen = {name: value for name, value in values.items() if value is not None}
        if "scales" in chosen:
            sizes = chosen["scales"]
            several = sizes if isinstance(sizes, (list, tuple)) else [sizes]
            chosen["scales"] = tuple(map(str, several)) or None
        return cls(**chosen)

    @property
    def augments(self) -> bool:
        """Whether several views of an image, or one of another size, are merged."""
        return self.flip or self.scales is not None

    def flags(self) -> str:
        """The flags that are given, for messages."""
        given = {"--soft-nms": self.soft_nms, "--flip": self.flip, "--scales": self.scales}
        return " and ".join(flag for flag, value in given.items() if value)

    def check_size(self, size: str | None) -> None:
        """Raise UserError where the size that images are resized to is given too."""
        if size is not None and self.scales is not None:
            raise UserError(f"size {size} and scales {' '.join(self.scales)} exclude each other: give one")

    def views(self, size: tuple[int, int]) -> tuple[View, ...]:
        """The views of an image, of which the first is not mirrored; `size` is the one without scales."""
        sizes = [size] if self.scales is None else [parse_size(text) for text in self.scales]
        return tuple(View(one, mirrored) for one in sizes for mirrored in (False, True)[: 1 + self.flip])
