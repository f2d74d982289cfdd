"""The detectors, one file each, and what they are made of."""

from msefpn.models.detectors import (
    cascade_rcnn,
    fast_rcnn,
    faster_rcnn,
    fcos,
    mask_rcnn,
    retinanet,
    ssd,
    yolov3,
)
from msefpn.models.detectors.base import DenseHead, Detector, MakeNeck, OneStage, RegionHead, TwoStage

__all__ = [
    "DenseHead",
    "Detector",
    "MakeNeck",
    "OneStage",
    "RegionHead",
    "TwoStage",
    "cascade_rcnn",
    "fast_rcnn",
    "faster_rcnn",
    "fcos",
    "mask_rcnn",
    "retinanet",
    "ssd",
    "yolov3",
]
