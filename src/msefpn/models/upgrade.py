"""Another neck in the place of a detector's FPN, which starts as that FPN: the detections stay."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from msefpn import plugins
from msefpn.errors import UserError
from msefpn.models.detectors import Detector
from msefpn.models.factory import build
from msefpn.necks import FPN


def upgrade_neck(detector: Detector, neck: str, neck_options: Mapping[str, Any]) -> Detector:
    """Build the same detector on another neck that starts as the FPN that it has.

    Args:
        detector: one on an FPN.
        neck: name of a neck that has a method `start_from(fpn)`, such as MSE-FPN's.
        neck_options: its options; those of the levels and the width are the FPN's, and so are its norm and
            upsampling. Where the neck has an option `start`, it is `identity`.

    Returns:
        The upgraded one, in evaluation mode; all but the neck has the same weights.

    Raises:
        UserError: the detector's neck is not an FPN, the other cannot start as one, or its options are wrong.
    """
    config = detector.config
    if type(detector.neck) is not FPN:
        raise UserError(f"the neck of this {config.detector} is '{config.neck}': only 'fpn' can be upgraded")
    able = [name for name, plugin in plugins.known("neck").items() if hasattr(plugin.object, "start_from")]
    if neck not in able:
        if "+" not in neck:
            plugins.find("neck", neck)  # an unknown name is told with the known ones
        raise UserError(f"neck '{neck}' cannot start as an FPN: known: {', '.join(able)}")
    same = {"start": "identity", "norm": detector.neck.norm, "upsample": detector.neck.upsample}
    taken = inspect.signature(plugins.find("neck", neck)).parameters
    options = {key: value for key, value in same.items() if key in taken and value != taken[key].default}
    options |= dict(config.neck_options) | dict(neck_options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = build(
            dataclasses.replace(config, neck=neck, neck_options=options),
            detector.classes,
            detector.category_ids,
        )
    try:
        made.neck.start_from(detector.neck)  # type: ignore[operator]  # of those that can, see above
    except ValueError as error:
        raise UserError(f"neck_options: {error}") from None
    if not detector.training_parts():
        made.drop_training_parts()
    kept = {name: x for name, x in detector.state_dict().items() if not name.startswith("neck.")}
    left = made.load_state_dict(kept, strict=False)
    wrong = [*left.unexpected_keys, *(name for name in left.missing_keys if not name.startswith("neck."))]
    if wrong:
        raise UserError(f"{config.detector} has other parts on the neck '{neck}', such as {wrong[0]}")
    return made.eval()


@torch.no_grad()
def pyramid_difference(first: Detector, second: Detector) -> float:
    """Largest difference of two detectors' pyramids over the largest value of each level, on noise."""
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 160, 224), dtype=torch.uint8, generator=noise)
    sizes = torch.tensor([[150, 217]])
    pairs = zip(first.pyramid(images, sizes), second.pyramid(images, sizes), strict=True)
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-12)) for x, y in pairs)
