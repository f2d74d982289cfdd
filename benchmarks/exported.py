"""A detector as exported files, run by onnxruntime, OpenVINO or torch."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msefpn.checkpoint import DetectorInfo
from msefpn.inference.exported import Exported, load_exported
from msefpn.inference.formats import EXPORTERS
from msefpn.inference.formats.base import describe
from msefpn.inference.formats.openvino import OpenVINO
from msefpn.models import Detector
from msefpn.structures import Batch, Targets


def exported_call(
    detector: Detector, images: Tensor, sizes: Tensor, kind: str, precision: str, *, bf16: bool = False
) -> Callable[[], Any]:
    """A call of the file that `msefpn export` writes, with as many threads as torch has.

    Args:
        detector: what is exported.
        images: padded uint8 images (B, 3, H, W), which int8 is calibrated on as well.
        sizes: (B, 2).
        kind: onnx, openvino or pt2.
        precision: fp32, fp16 or int8.
        bf16: let OpenVINO compute in bfloat16.
    """
    none = Targets(*(torch.zeros(0),) * 3)
    samples = [Batch(images, sizes, sizes, sizes[:, 0], none)]
    with tempfile.TemporaryDirectory() as folder:
        exporter = EXPORTERS[kind]
        path = Path(folder, f"detector{exporter.suffix}")
        info = describe(detector, "640", precision, exporter.packages)
        exporter.write(detector.eval(), info, path, precision, samples)
        exported = load_exported(path, trust=True)
        if bf16:
            about = DetectorInfo(exported.config, exported.classes, exported.category_ids)
            exported = Exported(about, OpenVINO().open(path, bf16=True), path)
    return lambda: exported(images, sizes)
