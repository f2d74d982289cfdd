"""A logger and a callback: the best AP in a text file, and an end to what has diverged."""

from collections.abc import Mapping

from msefpn.plugins import register
from msefpn.training.callbacks import Callback, Run


@register("logger", "best_ap")
class BestAP(Callback):
    """Writes `best_ap.txt` into the run folder."""

    def start(self, run: Run) -> None:
        """Go on from the best AP of a run that is resumed."""
        super().start(run)
        self.best = -1.0 if run.best is None else run.best["AP"]

    def evaluation(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Compare, and write."""
        self.best = max(self.best, values["AP"])
        (self.run.out / "best_ap.txt").write_text(f"{self.best:.4f}\n", encoding="utf-8")


@register("callback", "stop_diverged")
class StopDiverged(Callback):
    """Ends a training whose loss has passed 100."""

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Look at the loss."""
        if values["loss"] > 100:
            self.run.stop(f"the loss was {values['loss']:.0f} at step {step}")
