"""Registers the detectors."""

from msefpn.models.factory import DETECTORS
from msefpn.plugins import register

for _name, _detector in DETECTORS.items():
    register("detector", _name)(_detector)
