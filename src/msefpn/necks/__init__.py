"""Feature pyramids: lists of maps in, lists of maps out; usable alone in any model.

>>> from msefpn.necks import MSEFPN
>>> neck = MSEFPN(in_channels=[256, 512, 1024, 2048], in_strides=[4, 8, 16, 32])
>>> pyramid = neck(features)  # four maps of 256 channels
"""

from msefpn.necks.ac_fpn import ACFPN
from msefpn.necks.afpn import AFPN
from msefpn.necks.aug_fpn import AugFPN
from msefpn.necks.base import InnerMap, Neck, init_xavier
from msefpn.necks.bfp import BFP
from msefpn.necks.bifpn import BiFPN
from msefpn.necks.ce_fpn import CEFPN
from msefpn.necks.fpn import FPN
from msefpn.necks.freq_fusion import FreqFusion
from msefpn.necks.gates import GATES, GCG
from msefpn.necks.mse_fpn import MSEFPN, SIM
from msefpn.necks.pafpn import PAFPN
from msefpn.necks.res_mse_fpn import ResMSEFPN
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
    "afpn": AFPN,
    "freq_fusion": FreqFusion,
    "mse_fpn": MSEFPN,
    "res_mse_fpn": ResMSEFPN,
}

__all__ = [
    "ACFPN",
    "AFPN",
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
    "FreqFusion",
    "InnerMap",
    "Neck",
    "ResMSEFPN",
    "Stack",
    "init_xavier",
]
