"""Training on pytorch-lightning; no other file imports it.

All random state is derived from (seed, process, epoch, batch), and the learning rate from the step, so that
nothing has to be carried over an interruption but weights, optimizer and averages.
"""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from msefpn.config import parse_size
from msefpn.data.coco import CocoData
from msefpn.data.ground_truth import category_ids_for, truth_of
from msefpn.data.loader import eval_loader, mixed_seed, train_loader
from msefpn.errors import UserError
from msefpn.inference.detect import Predictions, as_results, detect, merge_predictions
from msefpn.inference.device import telling_compiler, telling_memory
from msefpn.metrics.coco import evaluate_coco
from msefpn.models import Detector
from msefpn.runs.console import TrainingProgress, say, show_dropped
from msefpn.runs.signals import Interruption, interruptible
from msefpn.structures import Batch
from msefpn.training.callbacks import Callbacks, Run
from msefpn.training.clock import Clock
from msefpn.training.ema import Ema
from msefpn.training.processes import what_ended
from msefpn.training.recorder import Recorder
from msefpn.training.resume import DataMarks, settings_of
from msefpn.training.schedule import lr_factor, make_optimizer


class Training(pl.LightningModule):
    """A detector in training.

    Args:
        detector: the weights to begin with are its own.
        run: configuration, and how far the run is.
        train_data: what is learned from.
        val_data: what is evaluated on after each epoch.
        state: what `read_resume` read, to resume from.
        marks: of the data; kept with the state.
        recorder: of the first process; None in the others.
        callbacks: of the first process; None in the others.
        steps: stop after that many; None: at the end.
    """

    def __init__(
        self,
        detector: Detector,
        run: Run,
        train_data: CocoData,
        val_data: CocoData,
        *,
        state: dict[str, Any] | None,
        marks: DataMarks,
        recorder: Recorder | None,
        callbacks: Callbacks | None,
        steps: int | None,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.run, self.config = run, run.config
        self.losses = torch.compile(detector.losses) if self.config.compile else detector.losses
        self.train_data, self.val_data = train_data, val_data
        self.category_ids = category_ids_for(
            detector.classes, val_data, f"the training data {train_data.file}"
        )
        self.state, self.marks = state, marks
        self.recorder, self.callbacks = recorder, callbacks
        self.limit = steps
        self.step = run.step
        self.stop = Interruption()
        self.ema: Ema | None = None
        self.lr = 0.0
        self.sums: Counter[str] = Counter()
        self.clock = Clock(self.config.epochs - run.epoch)
        self.progress = TrainingProgress(self.config.epochs) if recorder is not None else None

    @property
    def epoch(self) -> int:
        """Epochs of the whole run that are done; Lightning counts those of this process."""
        return self.run.epoch + self.current_epoch

    @property
    def per_pass(self) -> int:
        """Images of one forward pass on one device."""
        return self.config.batch // (self.config.devices * self.config.accumulate)

    @property
    def batches(self) -> int:
        """Batches of an epoch on one device."""
        return int(self.trainer.num_training_batches)

    def train_dataloader(self) -> Any:
        """Lightning asks for it at the start of every epoch."""
        return train_loader(
            self.train_data,
            size=parse_size(self.config.size),
            augment=self.config.augment,
            batch=self.per_pass,
            workers=self.config.workers,
            seed=self.config.seed,
            epoch=self.epoch,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            keep_empty=self.config.keep_empty,
            antialias=self.config.antialias,
        )

    def configure_optimizers(self) -> Optimizer:
        """Build it, in the state that the run is resumed from."""
        optimizer = make_optimizer(self.detector, self.config)
        if self.state is not None:
            optimizer.load_state_dict(self.state["optimizer"])
        return optimizer

    def setup(self, stage: str) -> None:
        """Take the signals back, whose handlers Lightning has just put its own over."""
        if self.stop.active:
            self.stop.install()

    def on_train_start(self) -> None:
        """Begin the averages, when the weights are on their device."""
        if self.config.ema:
            self.ema = Ema(self.detector, self.config.ema)
            if self.state is not None and self.state["ema"] is not None:
                self.ema.load(self.state["ema"])
        self.state = None
        if self.callbacks is not None:
            self.callbacks.start(self.run)

    def on_train_epoch_start(self) -> None:
        """Begin to count anew."""
        self.detector.train()
        self.sums.clear()
        if self.limit is not None:
            steps = (self.limit - self.run.step) * self.config.accumulate
            self.clock.epochs = min(self.clock.epochs, steps / self.batches)
        self.clock.start_epoch()
        if self.progress is not None:
            self.progress.start(f"epoch {self.epoch + 1}/{self.config.epochs}", self.batches)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate, and seed what is random inside the model, like the samplers."""
        steps_per_epoch = math.ceil(self.batches / self.config.accumulate)
        self.lr = self.config.scaled_lr * lr_factor(self.config, self.step, steps_per_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr
        torch.manual_seed(mixed_seed(self.config.seed, self.global_rank, self.epoch, batch_idx))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses. Raises UserError in every process where it is not finite in one."""
        self.stop.check()
        losses = self.losses(batch.images, batch.sizes, batch.targets, batch.proposals)
        total = torch.stack(list(losses.values())).sum()
        values = {name: float(value.detach()) for name, value in losses.items()}
        self._stop_if_not_finite(values, batch)
        values["loss"] = sum(values.values())
        self.sums.update(values)
        self.clock.seen(len(batch.images) * self.trainer.world_size, (batch_idx + 1) / self.batches)
        if self.progress is not None:
            self.progress.step({"loss": values["loss"], "lr": self.lr, **values}, self.clock)
        if self.callbacks is not None and batch_idx % self.config.accumulate == 0:
            self.callbacks.step(self.step, values | {"lr": self.lr})
        return total

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Count the step and average the weights."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)
        if self.limit is not None and self.step >= self.limit:
            self.trainer.should_stop = True

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Note how far the epoch is."""
        self.batches_done = batch_idx + 1

    def on_train_epoch_end(self) -> None:
        """Evaluate, and keep the epoch; one that `steps` has cut short is not one to resume from."""
        if self.trainer.world_size > 1:
            self._average_statistics()
        if self.ema is None:
            predictions = self._evaluate()
        else:
            with self.ema.swapped():
                predictions = self._evaluate()
        self.clock.end_epoch()
        if self.recorder is not None:
            self._record(self.recorder, predictions)
        if self._is_to_stop():
            self.trainer.should_stop = True

    def _record(self, recorder: Recorder, predictions: Predictions) -> None:
        """Keep and tell what an epoch gave, in the first process."""
        results = as_results(predictions, self.category_ids)
        evaluation = evaluate_coco(truth_of(self.val_data), results, masks=self.detector.learns_masks)
        numbers = evaluation.to_json() | {"num_dropped": predictions.num_dropped}
        epoch, whole = self.epoch + 1, self.batches_done == self.batches
        weights = self.detector.state_dict() if self.ema is None else self.ema.weights
        values = {name: value / self.batches_done for name, value in sorted(self.sums.items())}
        values |= {"lr": self.lr, "images_per_second": self.clock.images_per_second}
        assert self.callbacks is not None
        with self.stop.held():  # it takes seconds, and keeps an epoch
            self.callbacks.epoch(epoch, self.step, values)
            self.callbacks.evaluation(epoch, self.step, evaluation.named())
            state = self._state() if whole else None
            recorder.epoch(epoch, self.step, numbers, results, self.detector, weights, state)
        assert self.progress is not None
        self.progress.end_epoch(epoch, values, numbers, self.clock)
        show_dropped(predictions.num_dropped)

    def _is_to_stop(self) -> bool:
        """Whether a callback of the first process ends the training."""
        stop = torch.tensor(float(bool(self.run.stopped)), device=self.device)
        if self.trainer.world_size > 1:
            distributed.broadcast(stop, src=0)
        if self.run.stopped:
            say(f"stopped after epoch {self.epoch + 1}: {self.run.stopped}")
        return bool(stop > 0)

    def _average_statistics(self) -> None:
        """Batch normalisation has seen other images in each process: evaluate and keep the mean of all."""
        weights = [self.detector.state_dict()] + ([] if self.ema is None else [self.ema.weights])
        for name, module in self.detector.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                for statistic in (f"{name}.running_mean", f"{name}.running_var"):
                    for tensors in weights:
                        distributed.all_reduce(tensors[statistic])
                        tensors[statistic] /= self.trainer.world_size

    def _evaluate(self) -> Predictions:
        """Detections on the validation data, of all processes together."""
        loader = eval_loader(
            self.val_data,
            size=parse_size(self.config.size),
            batch=self.per_pass,
            workers=self.config.workers,
            rank=self.global_rank,
            world=self.trainer.world_size,
            antialias=self.config.antialias,
        )
        if self.progress is not None:
            self.progress.start(f"epoch {self.epoch + 1}/{self.config.epochs}, evaluation", len(loader))
        predictions = detect(self.detector, loader, self.device, self._evaluated)
        if self.trainer.world_size == 1:
            return predictions
        parts: list[Any] = [None] * self.trainer.world_size
        distributed.all_gather_object(parts, predictions)
        return merge_predictions(parts)

    def _evaluated(self, images: int) -> None:
        self.stop.check()
        if self.progress is not None:
            self.progress.evaluated(images)

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch + 1,
            "step": self.step,
            "detector": self.detector.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "ema": None if self.ema is None else self.ema.weights,
            "classes": list(self.detector.classes),
            "category_ids": list(self.detector.category_ids),
            "config": settings_of(self.config),
            "data": self.marks.to_state(),
        }

    def _stop_if_not_finite(self, losses: dict[str, float], batch: Batch) -> None:
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        faults: list[Any] = [(bad, batch.ids.tolist())]
        if self.trainer.world_size > 1:
            any_bad = torch.tensor(float(bool(bad)), device=self.device)
            distributed.all_reduce(any_bad)
            if any_bad > 0:
                faults = [None] * self.trainer.world_size
                distributed.all_gather_object(faults, (bad, batch.ids.tolist()))
        for names, ids in faults:
            if names:
                if self.global_rank > 0:  # the first process says it; `fit` ends this one in silence
                    raise distributed.DistError
                raise UserError(
                    f"{', '.join(names)} not finite at step {self.step + 1} with the images of id {ids}: "
                    "lower --lr or look at these images; the last whole epoch is kept"
                )


def fit(training: Training, device: torch.device, precision: str) -> None:
    """Train to the end.

    Args:
        training: what to train, from where it is.
        device: its kind, not its number, counts.
        precision: fp32 or bf16.

    Raises:
        UserError: a loss is not finite, an image unreadable, the memory or the disk full, or another process
            of the run has stopped.
        KeyboardInterrupt: on SIGINT and SIGTERM.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with interruptible() as training.stop:
        _fit(training, _trainer(training, device, precision))


def _trainer(training: Training, device: torch.device, precision: str) -> pl.Trainer:
    config = training.config
    strategy = _Processes(find_unused_parameters=False, broadcast_buffers=False)
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=config.devices,
        strategy=strategy if config.devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
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
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|torch\.(utils\.data|optim)")
            trainer.fit(training)
        reason = training.run.stopped
    except BaseException as error:
        left = isinstance(error, (SystemExit, KeyboardInterrupt)) and trainer.interrupted  # so ends Lightning
        if left or training.stop.at is not None:
            reason = "interrupted"
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # Lightning has switched it off
                signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        told = what_ended(error)
        if told is error:
            raise
        raise told from None
    finally:
        if training.progress is not None:
            training.progress.close()
        if training.callbacks is not None:
            training.callbacks.end(reason)


class _Processes(DDPStrategy):
    """Several processes, started by the first, that end together."""

    def on_exception(self, exception: BaseException) -> None:
        """In the first process, end the others and be killed by none of them: it has to say why it ends."""
        super().on_exception(exception)
        launcher: Any = self.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            launcher.procs.clear()  # Lightning's observer kills this process for any that has failed
