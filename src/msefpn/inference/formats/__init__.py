"""Export formats, one file each."""

from pathlib import Path

from msefpn.inference.formats.base import Exporter
from msefpn.inference.formats.onnx import ONNX
from msefpn.inference.formats.openvino import OpenVINO
from msefpn.inference.formats.pt2 import PT2

EXPORTERS: dict[str, Exporter] = {"onnx": ONNX(), "openvino": OpenVINO(), "pt2": PT2()}


def format_of(path: str | Path) -> str | None:
    """Return the format of a file by its suffix; None where it has none of these."""
    path = Path(path)
    named = (name for name, exporter in EXPORTERS.items() if path.suffix == exporter.suffix)
    return None if path.is_dir() else next(named, None)
