"""Loggers: callbacks that write down a training's values, in the run folder or in a tracker.

Each is registered under the name that `--logger` takes. It is made without arguments, before anything is
written; a package that is missing is reported there.
"""

from msefpn.training.loggers.files import CSVLogger, JSONLogger
from msefpn.training.loggers.trackers import MLflowLogger, TensorBoardLogger, TrackioLogger, WandbLogger

__all__ = ["CSVLogger", "JSONLogger", "MLflowLogger", "TensorBoardLogger", "TrackioLogger", "WandbLogger"]
