"""Feature pyramids: lists of maps in, lists of maps out; usable alone in any model.

>>> from msefpn.necks import MSEFPN
>>> neck = MSEFPN(in_channels=[256, 512, 1024, 2048], in_strides=[4, 8, 16, 32])
>>> pyramid = neck(features)  # four maps of 256 channels
"""

from msefpn.necks.ac_fpn import ACFPN
from msefpn.necks.aug_fpn import AugFPN
from msefpn.necks.base import InnerMap, Neck, init_xavier
from msefpn.necks.bfp import BFP
from msefpn.necks.bifpn import BiFPN
from msefpn.necks.ce_fpn import CEFPN
from msefpn.necks.fpn import FPN
from msefpn.necks.gates import GATES, GCG
from msefpn.necks.mse_fpn import MSEFPN, SIM
from msefpn.necks.pafpn import PAFPN
from msefpn.necks.sem import SEM
from msefpn.necks.stack import Stack

NECKS: dict[str, type[Neck]] = {
    "fpn": FPN,
    "pafpn": PAFPN,
    "bifpn": BiFPN,
    "bfp": BFP,
    "aug_fpn": AugFPN,
    "ce_fpn": CEFPN,
    "ac_fpn": ACFPN,
    "mse_fpn": MSEFPN,
}

__all__ = [
    "ACFPN",
    "BFP",
    "CEFPN",
    "FPN",
    "GATES",
    "GCG",
    "MSEFPN",
    "NECKS",
    "PAFPN",
    "SEM",
    "SIM",
    "AugFPN",
    "BiFPN",
    "InnerMap",
    "Neck",
    "Stack",
    "init_xavier",
]
