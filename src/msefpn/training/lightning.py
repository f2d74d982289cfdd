"""A detector in training, as a module of pytorch-lightning, which only this file and `engine` import.

All random state is derived from (seed, process, epoch, batch), and the learning rate from the step, so that
nothing has to be carried over an interruption but weights, optimizer, averages and how far the epoch is.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from msefpn.config import parse_size
from msefpn.data.coco import CocoData, category_ids_for, truth_of
from msefpn.data.loader import eval_loader, mixed_seed, train_loader
from msefpn.errors import UserError
from msefpn.inference.detect import Predictions, as_results, detect
from msefpn.metrics.coco import evaluate_coco
from msefpn.models import Detector
from msefpn.runs.console import TrainingProgress, say, show_dropped
from msefpn.runs.signals import Interruption
from msefpn.structures import Batch
from msefpn.training.callbacks import Callbacks, Run
from msefpn.training.counts import Clock, EpochCounts
from msefpn.training.ema import Ema
from msefpn.training.fingerprint import DataMarks, about_run
from msefpn.training.group import Group
from msefpn.training.keeper import Keeper
from msefpn.training.plan import parse_every
from msefpn.training.position import Position, restore_statistics, statistics_of
from msefpn.training.recorder import Recorder
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
        self.position = None if state is None else Position.of_state(state)
        self.recorder, self.callbacks = recorder, callbacks
        self.limit = steps
        self.step = run.step
        every = parse_every(self.config.checkpoint_every)
        self.keeper = Keeper(every, run.step, recorder, callbacks)
        self.began = self.evaluated = run.epoch
        self.skipped = 0
        self.ema: Ema | None = None
        self.lr = 0.0
        self.clock = Clock(self.config.epochs - run.epoch)
        self.counts = EpochCounts(self.clock)
        self.progress = TrainingProgress(self.config.epochs) if recorder is not None else None

    @property
    def epoch(self) -> int:
        """Epochs of the whole run that are done; Lightning counts those of this process."""
        return self.began + self.current_epoch

    @property
    def stop(self) -> Interruption:
        """The signals that have come."""
        return self.keeper.stop

    @property
    def group(self) -> Group | None:
        """The processes that train together; None: this one trains alone."""
        return self.keeper.group

    @property
    def batches(self) -> int:
        """Batches of an epoch on one device, those that were done before included."""
        return self.skipped + int(self.trainer.num_training_batches)

    @property
    def weights(self) -> list[dict[str, Tensor]]:
        """Those of the detector, and their averages if there are any."""
        own: dict[str, Tensor] = self.detector.state_dict()
        if self.ema is None:
            return [own]
        return [own if self.ema.aside is None else self.ema.aside, self.ema.weights]

    def train_dataloader(self) -> Any:
        """Lightning asks for it at the start of every epoch."""
        self.skipped = 0
        if self.state is not None and self.position is not None:
            rest = self._loader(self.run.epoch, self.position.batches)
            if len(rest):
                self.skipped = self.position.batches
                return rest
            self.began += 1  # only the evaluation is left of that epoch
        return self._loader(self.epoch)

    def _loader(self, epoch: int, skip: int = 0) -> Any:
        return train_loader(
            self.train_data,
            size=parse_size(self.config.size),
            augment=self.config.augment,
            batch=self.config.per_pass,
            workers=self.config.workers,
            seed=self.config.seed,
            epoch=epoch,
            skip=skip,
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

    def on_train_start(self) -> None:
        """Begin the averages, when the weights are on their device, and what the state has left to do."""
        self.stop.holding = True
        if self.stop.active:  # Lightning's own handler of SIGTERM exchanges tensors, which the others do not
            self.stop.install()
        if self.config.ema:
            self.ema = Ema(self.detector, self.config.ema)
            if self.state is not None and self.state["ema"] is not None:
                self.ema.load(self.state["ema"])
        if self.state is not None and self.state.get("scaler"):
            self.trainer.precision_plugin.load_state_dict(self.state["scaler"])
        if self.position is not None:
            kept, world = self.position.statistics, self.trainer.world_size
            restore_statistics(self.weights, kept, self.global_rank, world)
        self.state = None
        if self.callbacks is not None:
            self.callbacks.start(self.run)
        if self.position is not None and self.skipped:
            self.clock.epochs -= self.skipped / self.batches
        elif self.position is not None:
            self.trainer.fit_loop.max_epochs = self.config.epochs - self.began
            self._finish_before(self.position)

    def _finish_before(self, position: Position) -> None:
        """Evaluate the epoch of which only that was left."""
        self.detector.train()
        self.counts.begin(position.batches, position)
        self.lr = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.group is not None and position.statistics:
            self.group.average_statistics(self.weights, statistics_of(self.detector))
        self._finish()

    def on_train_epoch_start(self) -> None:
        """Begin the counts of the epoch."""
        self.detector.train()
        self.counts.begin(self.batches, self.position if self.skipped else None)
        if self.limit is not None:
            steps = (self.limit - self.run.step) * self.config.accumulate
            self.clock.epochs = min(self.clock.epochs, steps / self.batches)
        if self.progress is not None:
            text = f"epoch {self.epoch + 1}/{self.config.epochs}"
            self.progress.start(text, self.batches, self.skipped)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set the learning rate, and seed what is random inside the model, like the samplers."""
        steps_per_epoch = math.ceil(self.batches / self.config.accumulate)
        self.lr = self.config.scaled_lr * lr_factor(self.config, self.step, steps_per_epoch)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.lr
        number = self.skipped + batch_idx
        torch.manual_seed(mixed_seed(self.config.seed, self.global_rank, self.epoch, number))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the losses. Raises UserError in every process where it is not finite in one."""
        if self.group is not None:
            self.group.check()
        losses = self.losses(batch.images, batch.sizes, batch.targets, batch.proposals)
        each = torch.stack(list(losses.values()))
        values = dict(zip(losses, each.tolist(), strict=True))
        infinite = [name for name, value in values.items() if not math.isfinite(value)]
        if self.keeper.agree(self.step + 1, fail=bool(infinite)).fail:
            self._refuse(infinite, batch)
        values["loss"] = sum(values.values())
        images = len(batch.images) * self.trainer.world_size
        self.counts.add(values, images, (batch_idx + 1) / self.batches)
        if self.progress is not None:
            self.progress.step({"loss": values["loss"], "lr": self.lr, **values}, self.clock)
        if self.callbacks is not None and batch_idx % self.config.accumulate == 0:
            self.callbacks.step(self.step, values | {"lr": self.lr})
        return each.sum()

    def _refuse(self, infinite: list[str], batch: Batch) -> None:
        """Raise for losses that are not finite in one of the processes; called in all of them.

        Args:
            infinite: names of those of this process.
            batch: its images.

        Raises:
            UserError: in the first process, with the images of the process that has them.
            DistError: in the others: the first one tells.
        """
        own = infinite, batch.ids.tolist()
        for names, ids in [own] if self.group is None else self.group.every(own):
            if names and self.global_rank > 0:
                raise distributed.DistError
            if names:
                raise UserError(
                    f"{', '.join(names)} not finite at step {self.step + 1} with the images of id {ids}: "
                    "lower --lr or look at these images; the last state is kept"
                )

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
        """After a step, keep the state and end, where one of the processes is to."""
        self.counts.batches = self.skipped + batch_idx + 1
        if (batch_idx + 1) % self.config.accumulate == 0 or self.counts.whole:
            self.keeper.end_step(self.step, self._state_within)

    def on_train_epoch_end(self) -> None:
        """Evaluate, and keep the epoch."""
        if self.group is not None:
            self._gather(self.group)
            self.group.average_statistics(self.weights, statistics_of(self.detector))
        self._finish()

    def _finish(self) -> None:
        """Evaluate and keep an epoch; a resumed run completes one that was cut short."""
        try:
            with contextlib.nullcontext() if self.ema is None else self.ema.swapped():
                predictions = self._evaluate()
        except BaseException as error:
            if self.recorder is not None and self.recorder.step < self.step:
                with contextlib.suppress(*([] if isinstance(error, KeyboardInterrupt) else [Exception])):
                    self.keeper.keep(self._state(self.counts.position()))
            raise
        self.clock.end_epoch()
        if self.recorder is not None and predictions is not None:
            self._record(self.recorder, predictions)
            if self.run.stopped:
                say(f"stopped after epoch {self.evaluated + 1}: {self.run.stopped}")
        if self.group is not None:
            self.group.wait(f"epoch {self.evaluated}")
        if self.keeper.end_evaluation(self.step, self.run.stopped):
            self.trainer.should_stop = True
        self.evaluated += 1

    def _record(self, recorder: Recorder, predictions: Predictions) -> None:
        """Keep and tell what an epoch gave, in the first process."""
        results = as_results(predictions, self.category_ids)
        evaluation = evaluate_coco(truth_of(self.val_data), results, masks=self.detector.learns_masks)
        numbers = evaluation.to_json() | {"num_dropped": predictions.num_dropped}
        epoch, values = self.evaluated + 1, self.counts.means()
        values |= {"lr": self.lr, "images_per_second": self.clock.images_per_second}
        assert self.callbacks is not None
        self.callbacks.epoch(epoch, self.step, values)
        self.callbacks.evaluation(epoch, self.step, evaluation.named())
        state = self._state(None if self.counts.whole else self.counts.position())
        recorder.epoch(epoch, self.step, numbers, results, self.detector, self.weights[-1], state)
        assert self.progress is not None
        self.progress.end_epoch(epoch, values, numbers, self.clock)
        show_dropped(predictions.num_dropped)

    def _evaluate(self) -> Predictions | None:
        """Detections on the validation data, of all processes in the first one; None in the others."""
        loader = eval_loader(
            self.val_data,
            size=parse_size(self.config.size),
            batch=self.config.per_pass,
            workers=self.config.workers,
            rank=self.global_rank,
            world=self.trainer.world_size,
            antialias=self.config.antialias,
        )
        if self.progress is not None:
            self.progress.start(f"epoch {self.evaluated + 1}/{self.config.epochs}, evaluation", len(loader))
        found = detect(self.detector, loader, self.device, self._evaluated)
        return found if self.group is None else self.group.gather(found)

    def _evaluated(self, images: int) -> None:
        if self.group is not None:
            self.group.check()
        self.keeper.check(lambda: self._state(self.counts.position()))
        if self.progress is not None:
            self.progress.evaluated(images)

    def _gather(self, group: Group) -> None:
        self.counts.statistics = group.gather_statistics(self.weights, statistics_of(self.detector))

    def _state_within(self) -> dict[str, Any]:
        """The state after a step; called in all processes."""
        if self.group is not None:
            self._gather(self.group)
        return self._state(self.counts.position())

    def _state(self, position: Position | None) -> dict[str, Any]:
        """What a training is resumed from, within an epoch or after one."""
        return {
            "epoch": self.evaluated + (position is None),
            "within": None if position is None else position.to_state(),
            "step": self.step,
            "detector": self.weights[0],
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "scaler": self.trainer.precision_plugin.state_dict(),
            "ema": None if self.ema is None else self.ema.weights,
            **about_run(self.detector, self.config, self.marks),
        }
