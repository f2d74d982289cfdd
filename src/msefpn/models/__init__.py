"""Detectors: backbone, neck and head, from a batch of images to losses or detections."""

from msefpn.models.detectors import Detector, OneStage, TwoStage
from msefpn.models.factory import build, check_neck_name, probe
from msefpn.models.importers import Foreign, from_torchvision, read_foreign
from msefpn.models.style import styled
from msefpn.models.upgrade import pyramid_difference, upgrade_neck
from msefpn.models.weights import InitReport, check_initial_weights, info_of, init_weights, load, save

__all__ = [
    "Detector",
    "Foreign",
    "InitReport",
    "OneStage",
    "TwoStage",
    "build",
    "check_initial_weights",
    "check_neck_name",
    "from_torchvision",
    "info_of",
    "init_weights",
    "load",
    "probe",
    "pyramid_difference",
    "read_foreign",
    "save",
    "styled",
    "upgrade_neck",
]
