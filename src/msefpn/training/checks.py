"""What of a training can be refused, or decided, before it starts: devices, precision, initial weights."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.inference.device import pick_device
from msefpn.models import Detector, InitReport, build


def probe(config: Config) -> Detector:
    """Build a detector without data, to ask what it can do and needs; it may hold no values.

    Raises:
        UserError: a name or an option is wrong, or there are not as many devices as asked for.
    """
    check_devices(config)
    try:
        with torch.device("meta"):
            return build(config, ["any"])
    except UserError:
        raise
    except Exception:  # a plug-in may look at values
        return build(config, ["any"])


def check_initial_weights(detector: Detector, report: InitReport) -> None:
    """Raise UserError where the backbone would keep random weights, or statistics of no data, to the end."""
    backbone = detector.backbone
    fixed = {f"backbone.body.{name}" for name in backbone.frozen}
    for name, module in backbone.named_modules():
        if isinstance(module, _BatchNorm) and not module.training:
            fixed |= {f"backbone.{name}.running_mean", f"backbone.{name}.running_var"}
    random = sorted(fixed.intersection(report.missing))
    if random:
        options = ["frozen_stages: -1"] + ["train_norm: true"] * bool(backbone.norms())
        raise UserError(
            f"init {detector.config.init} would leave {len(random)} fixed tensors of {backbone.name} random, "
            f"such as {random[0]}: set backbone_options: {{{', '.join(options)}}} in the recipe, or give "
            "--init imagenet or a file that has them"
        )


def pick_precision(name: str, device: torch.device) -> str:
    """Return 'fp32' or 'bf16' for 'auto', 'fp32' or 'bf16'."""
    if name != "auto":
        return name
    # Emulated, bf16 is slower than fp32.
    capable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if capable else "fp32"


def check_devices(config: Config) -> torch.device:
    """Return the device to train on. Raises UserError where there are not as many as asked for."""
    device = pick_device(config.device)
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise UserError(
            f"devices {config.devices}: this machine has {torch.cuda.device_count()} GPUs: "
            "give fewer, or --device cpu"
        )
    return device
