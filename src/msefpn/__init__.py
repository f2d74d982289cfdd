"""Object detection with MSE-FPN and other feature pyramids: train, evaluate, predict, or take just a neck.

>>> import msefpn
>>> msefpn.train("my_data", out="runs/mine")
>>> msefpn.predict("runs/mine", ["photos"])
"""

import importlib
from typing import TYPE_CHECKING, Any

from msefpn.api import build, check, evaluate, load, predict, train
from msefpn.errors import UserError

if TYPE_CHECKING:
    from msefpn.necks import FPN, GCG, MSEFPN, SEM, SIM

__version__ = "0.1.0"
__all__ = [
    "FPN",
    "GCG",
    "MSEFPN",
    "SEM",
    "SIM",
    "UserError",
    "build",
    "check",
    "evaluate",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the necks, and torch with them, when one is asked for."""
    if name in __all__:
        return getattr(importlib.import_module("msefpn.necks"), name)
    raise AttributeError(f"module 'msefpn' has no attribute '{name}'")
