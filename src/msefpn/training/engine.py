"""The run of pytorch-lightning's trainer: processes, precision, and how it ends."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from msefpn.config import parse_size
from msefpn.data.loader import lost_worker
from msefpn.errors import UserError
from msefpn.inference.device import telling_compiler, telling_memory
from msefpn.models.sync import synchronise_norms
from msefpn.runs.console import say
from msefpn.runs.meeting import explained
from msefpn.runs.peers import Peers
from msefpn.runs.signals import interruptible
from msefpn.runs.world import World
from msefpn.training.group import opened
from msefpn.training.lightning import Training


def fit(training: Training, peers: Peers | None, device: torch.device, precision: str) -> None:
    """Train to the end.

    Args:
        training: what to train, from where it is.
        peers: the other processes; None: this one trains alone.
        device: only its kind is used, not its number.
        precision: fp32, bf16 or fp16.

    Raises:
        UserError: a loss is not finite, an image unreadable, the memory or the disk full, or another process
            of the run has stopped.
        KeyboardInterrupt: on SIGINT and SIGTERM.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    first = training.recorder is not None
    if training.config.sync_bn and not synchronise_norms(training.detector.train()) and first:
        say("sync_bn changes nothing: no batch normalisation is trained (backbone_options.train_norm)")
    with interruptible() as training.keeper.stop, contextlib.ExitStack() as together:
        if peers is not None:
            if (callbacks := training.callbacks) is not None:
                peers.closers.append(lambda: callbacks.end("another process stopped"))
            together.enter_context(explained(peers))
            training.keeper.group = together.enter_context(opened(peers, device, training.config.nodes))
        _fit(training, _trainer(training, device, precision))


def _trainer(training: Training, device: torch.device, precision: str) -> pl.Trainer:
    config, world = training.config, World()
    strategy: str | DDPStrategy = "auto"
    if training.group is not None:
        world = training.group.peers.world
        strategy = DDPStrategy(
            find_unused_parameters=False, broadcast_buffers=False, gradient_as_bucket_view=config.bucket_view
        )
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=strategy,
        plugins=[_Started(world, config.devices)],
        precision=_PRECISIONS[precision],
        max_epochs=config.epochs - training.run.epoch,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.grad_clip or None,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _fit(training: Training, trainer: pl.Trainer) -> None:
    config, reason = training.config, "failed"
    try:
        with (
            warnings.catch_warnings(),
            telling_memory(config.batch, parse_size(config.size)),
            telling_compiler(),
        ):
            warnings.filterwarnings(
                "ignore", module=r"pytorch_lightning|lightning_fabric|torch\.(utils\.data|optim)"
            )
            warnings.filterwarnings("ignore", "Grad strides do not match")  # a 1x1 kernel has several
            trainer.fit(training)
        training.stop.check()
        reason = training.run.stopped
    except BaseException as error:
        if isinstance(error, UserError):
            raise
        left = isinstance(error, (SystemExit, KeyboardInterrupt)) and trainer.interrupted  # so ends Lightning
        if left or training.stop.at is not None:
            reason = "interrupted"
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # Lightning has switched it off
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        if isinstance(error, RuntimeError) and (told := lost_worker(error)) is not None:
            raise told from None
        raise
    finally:
        training.stop.holding = False
        if training.progress is not None:
            training.progress.close()
        if training.callbacks is not None:
            training.callbacks.end(reason)


_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""What Lightning calls them."""


class _Started(LightningEnvironment):
    """The processes as they have met; Lightning starts none, and reads no variables of launchers.

    Of Slurm neither: Lightning would answer its signal with a checkpoint of its own.
    """

    def __init__(self, world: World, devices: int) -> None:
        super().__init__()
        self.world, self.devices = world, devices

    @property
    def creates_processes_externally(self) -> bool:
        """Whether Lightning starts none."""
        return True

    def global_rank(self) -> int:
        """Number of this process."""
        return self.world.rank

    def local_rank(self) -> int:
        """Number of this process on its node."""
        return self.world.local_rank

    def world_size(self) -> int:
        """Number of processes."""
        return self.world.size

    def node_rank(self) -> int:
        """Number of this node."""
        return self.world.rank // self.devices
