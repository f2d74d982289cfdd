"""Which ResNet or ResNeXt weights are of, told from their names and shapes."""

import re
from collections.abc import Mapping

import timm
from torch import Tensor

from msefpn.errors import UserError

_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""By whether the blocks are bottlenecks, and how many each stage has."""


def resnet_name(body: Mapping[str, Tensor]) -> str:
    """timm's name of the backbone.

    Args:
        body: its tensors by timm's names, as `layer1.0.conv1.weight`.

    Raises:
        UserError: it is not a ResNet or ResNeXt that timm has.
    """
    found = [re.match(r"layer(\d)\.(\d+)\.conv(\d)\.weight$", name) for name in body]
    blocks = [(int(m[1]), int(m[2])) for m in found if m]
    counts = tuple(max([block + 1 for stage, block in blocks if stage == i], default=0) for i in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in body
    depth = _DEPTHS.get((bottleneck, counts))
    first, inner = body.get("conv1.weight"), body.get("layer1.0.conv2.weight")
    if depth is None or first is None or inner is None or inner.ndim != 4 or first.shape[-1] != 7:
        stages = "" if not any(counts) else f"; its stages have {', '.join(map(str, counts))} blocks"
        raise UserError(f"its backbone is not a ResNet or ResNeXt of 18 to 152 layers{stages}")
    width, per_group = inner.shape[:2]
    groups = width // max(per_group, 1)
    if groups > 1:
        name = f"resnext{depth}_{groups}x{per_group}d"
    else:
        name = f"resnet{depth}" if width == 64 else f"wide_resnet{depth}_{width // 64}"
    if not timm.is_model(name):
        raise UserError(f"its backbone would be {name}, which timm does not have")
    return name
