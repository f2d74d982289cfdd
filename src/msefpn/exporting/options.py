"""The options of `export`; imports neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msefpn.config import parse_size
from msefpn.errors import UserError, unknown_name
from msefpn.options import check_bounds, option


@dataclass(frozen=True)
class ExportOptions:
    """What to write, and what to compare it on."""

    format: str = option("onnx", "onnx, openvino or pt2 (torch.export)")
    precision: str = option(
        "fp32",
        "fp32; fp16: weights are stored in 16 bits and computed with in 32; int8: layers with weights are "
        "quantised, calibrated on images, all else stays in 32 bits; pt2 has no int8",
    )
    out: Path | None = option(
        None, "file to write (default: detector.onnx, detector-fp16.onnx, ... in the run)"
    )
    data: Path | None = option(
        None, "data folder to compare and to calibrate on (default: the run's own data)"
    )
    compare: int = option(50, "images of the val split that run and file are compared on; 0: none", low=0)
    calibrate: Path | None = option(
        None, "for int8, a folder of images to calibrate on (default: the training images)"
    )
    samples: int = option(100, "images to calibrate on", low=1)
    follow_links: bool = option(False, "follow symbolic links that lead out of a given folder")
    size: str | None = option(
        None,
        "longest x shortest side, pixels, that images are resized to fit into, with the file too "
        "(default: the run's)",
    )
    matched: float | None = option(
        None,
        "least share of detections with a score of 0.1 or more that both have, with an IoU of 0.95, 0.9 or "
        "0.5 (default: 0.99 for fp32, 0.98 for fp16, 0.85 for int8)",
    )
    ap_drop: float | None = option(
        None, "largest loss of AP, percent (default: 0.2 for fp32, 0.5 for fp16, 2 for int8)"
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.size is not None:
            parse_size(self.size)
        if self.calibrate is not None and self.precision != "int8":
            raise UserError(f"precision {self.precision} is not calibrated: leave out --calibrate")

    @classmethod
    def given(cls, **values: Any) -> ExportOptions:
        """Build from the values that are not None, as a user gives them. Raises UserError."""
        for name in values.keys() - cls.__dataclass_fields__.keys():
            raise unknown_name("option", name, cls.__dataclass_fields__)
        chosen = {name: value for name, value in values.items() if value is not None}
        for name in chosen.keys() & {"out", "data", "calibrate"}:
            chosen[name] = Path(chosen[name])
        if "size" in chosen:
            chosen["size"] = str(chosen["size"])
        return cls(**chosen)
