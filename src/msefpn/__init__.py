"""Object detection with MSE-FPN and other feature pyramids: train, evaluate, predict, or take just a neck.

>>> import msefpn
>>> msefpn.train("my_data", out="runs/mine")
>>> msefpn.predict("runs/mine", ["photos"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msefpn.api import build, evaluate, export, load, train
    from msefpn.compare import ablate, cost
    from msefpn.errors import UserError
    from msefpn.infer import predict, stream
    from msefpn.look import demo, explain, report
    from msefpn.necks import FPN, GCG, MSEFPN, SEM, SIM
    from msefpn.prepare import check, convert, split

__version__ = "0.1.0"
__all__ = [
    "FPN",
    "GCG",
    "MSEFPN",
    "SEM",
    "SIM",
    "UserError",
    "ablate",
    "build",
    "check",
    "convert",
    "cost",
    "demo",
    "evaluate",
    "explain",
    "export",
    "load",
    "predict",
    "report",
    "split",
    "stream",
    "train",
]
_HOMES = {
    "UserError": "errors",
    **dict.fromkeys(("FPN", "GCG", "MSEFPN", "SEM", "SIM"), "necks"),
    **dict.fromkeys(("ablate", "cost"), "compare"),
    **dict.fromkeys(("check", "convert", "split"), "prepare"),
    **dict.fromkeys(("demo", "explain", "report"), "look"),
    **dict.fromkeys(("predict", "stream"), "infer"),
}
"""Where a name comes from, if not from `msefpn.api`."""


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used: `import msefpn` alone loads nothing."""
    if name in __all__:
        return getattr(importlib.import_module(f"msefpn.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'msefpn' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the names that are not imported yet, too."""
    return sorted({*globals(), *__all__})
