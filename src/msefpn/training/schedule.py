"""The optimizer and its learning rate."""

from __future__ import annotations

import math

from torch.optim import SGD, AdamW, Optimizer

from msefpn.config import Config
from msefpn.models import Detector


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Steps of the warm-up: those of the configuration, or its share of all steps of the run, rounded."""
    share = config.epochs * steps_per_epoch if config.warmup < 1 else 1
    return round(config.warmup * share)


def lr_factor(config: Config, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a step as a part of the scaled one: warm-up, then milestones or a cosine."""
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * step / (config.epochs * steps_per_epoch)))
    else:
        factor = 0.1 ** sum(step // steps_per_epoch >= milestone for milestone in config.milestones)
    warmup = warmup_steps(config, steps_per_epoch)
    if step < warmup:
        factor *= 1 - (1 - step / warmup) * (1 - 0.001)  # mmcv's LrUpdaterHook, linear
    return factor


def make_optimizer(detector: Detector, config: Config) -> Optimizer:
    """SGD as mmdetection has it, or AdamW; norms and biases decay too."""
    weights = [weight for weight in detector.parameters() if weight.requires_grad]
    if config.optimizer == "sgd":
        return SGD(weights, lr=config.scaled_lr, momentum=0.9, weight_decay=config.weight_decay)
    return AdamW(weights, lr=config.scaled_lr, weight_decay=config.weight_decay)
