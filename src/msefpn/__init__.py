"""Object detection with MSE-FPN and other feature pyramids: train, evaluate, predict, or take just a neck.

>>> import msefpn
>>> msefpn.train("my_data", out="runs/mine")
>>> msefpn.predict("runs/mine", ["photos"])
"""

import importlib
from typing import TYPE_CHECKING, Any

from msefpn.version import __version__ as __version__

if TYPE_CHECKING:
    from msefpn.commands.compare import ablate, cost
    from msefpn.commands.data import check, convert, split
    from msefpn.commands.inspect import demo, explain, report
    from msefpn.commands.models import build, export, import_file, list_models, load, upgrade
    from msefpn.commands.plugins import list_plugins
    from msefpn.commands.predict import evaluate, predict, stream
    from msefpn.commands.train import train
    from msefpn.errors import UserError
    from msefpn.necks import FPN, GCG, MSEFPN, SEM, SIM

_HOMES = {
    "errors": ("UserError",),
    "necks": ("FPN", "GCG", "MSEFPN", "SEM", "SIM"),
    "commands.compare": ("ablate", "cost"),
    "commands.data": ("check", "convert", "split"),
    "commands.inspect": ("demo", "explain", "report"),
    "commands.models": ("build", "export", "import_file", "list_models", "load", "upgrade"),
    "commands.plugins": ("list_plugins",),
    "commands.predict": ("evaluate", "predict", "stream"),
    "commands.train": ("train",),
}
"""Modules and the public names that come from them."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
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
    "import_file",
    "list_models",
    "list_plugins",
    "load",
    "predict",
    "report",
    "split",
    "stream",
    "train",
    "upgrade",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used: `import msefpn` alone loads nothing."""
    if name in __all__:
        return getattr(importlib.import_module(f"msefpn.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'msefpn' has no attribute '{name}'")


def __dir__() -> list[str]:
    """List the names that are not imported yet, too."""
    return sorted({*globals(), *__all__})
