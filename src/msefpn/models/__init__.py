"""Detectors: backbone, neck and head, from a batch of images to losses or detections."""

from msefpn.models.detectors import Detector, OneStage, TwoStage
from msefpn.models.factory import build, check_neck_name, probe
from msefpn.models.torchvision_weights import from_torchvision
from msefpn.models.weights import InitReport, check_initial_weights, init_weights, load, save

__all__ = [
    "Detector",
    "InitReport",
    "OneStage",
    "TwoStage",
    "build",
    "check_initial_weights",
    "check_neck_name",
    "from_torchvision",
    "init_weights",
    "load",
    "probe",
    "save",
]
