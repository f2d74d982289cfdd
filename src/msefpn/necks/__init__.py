"""Feature pyramids: lists of maps in, lists of maps out; usable alone in any model.

>>> from msefpn.necks import MSEFPN
>>> neck = MSEFPN(in_channels=[256, 512, 1024, 2048], in_strides=[4, 8, 16, 32])
>>> pyramid = neck(features)  # four maps of 256 channels
"""

from msefpn.necks.base import Neck
from msefpn.necks.fpn import FPN
from msefpn.necks.mse_fpn import GATES, GCG, MSEFPN, SEM, SIM

NECKS: dict[str, type[Neck]] = {
    "fpn": FPN,
    "mse_fpn": MSEFPN,
}

__all__ = ["FPN", "GATES", "GCG", "MSEFPN", "NECKS", "SEM", "SIM", "Neck"]
