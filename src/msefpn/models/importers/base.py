"""What the importers share: names brought to ours one by one, and a detector that they must fit exactly."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from msefpn.config import Config
from msefpn.errors import UserError
from msefpn.models.factory import build

MEAN = (123.675, 116.28, 103.53)
"""ImageNet's mean, RGB, 0..255; the deviation is below."""
STD = (58.395, 57.12, 57.375)
_COUNTERS = "num_batches_tracked"
"""End of the names of counters that fixed normalisation does not read."""


class Carried(NamedTuple):
    """What became of one tensor of a checkpoint."""

    theirs: str
    """Its name there."""
    ours: str | None
    """Its name here; None: it was ignored."""
    note: str = ""
    """What was changed, or why it was ignored."""

    @property
    def kind(self) -> str:
        """`used`, `renamed`, `changed` or `ignored`."""
        if self.ours is None:
            return "ignored"
        return "changed" if self.note else "renamed" if self.ours != self.theirs else "used"


@dataclass(frozen=True)
class Style:
    """What a backbone's weights expect of images, and where it has its strides."""

    stride_in_1x1: bool = False
    """In the first 1x1 convolution of a bottleneck, not in the 3x3 one."""
    bgr: bool = False
    """Order of the channels that the first convolution reads."""
    mean: tuple[float, ...] = MEAN
    """(3,) RGB, 0..255."""
    std: tuple[float, ...] = STD
    """(3,) RGB."""

    @property
    def options(self) -> dict[str, Any]:
        """The `backbone_options` that differ from pytorch style; the weights take up the channels' order."""
        found: dict[str, Any] = {"stride_in_1x1": True} if self.stride_in_1x1 else {}
        if self.mean != MEAN:
            found["mean"] = list(self.mean)
        if self.std != STD:
            found["std"] = list(self.std)
        return found


PYTORCH = Style()
CAFFE = Style(stride_in_1x1=True, bgr=True, std=(1.0, 1.0, 1.0))
STYLES = {"pytorch": PYTORCH, "caffe": CAFFE}
"""By the names that mmdetection gives them; detectron2's zoo is of caffe style."""


class Description(NamedTuple):
    """The detector that a checkpoint's shapes and texts describe."""

    config: Config
    num_classes: int
    classes: tuple[str, ...] | None
    """None: the file does not name them."""


@dataclass
class Names:
    """A state dict whose tensors are taken one by one, each under a name of ours or with a reason.

    Attributes:
        left: tensors that have not been taken, by their names.
        own: tensors under our names.
        carried: what became of those that were taken.
    """

    left: dict[str, Tensor]
    own: dict[str, Tensor] = field(default_factory=dict)
    carried: list[Carried] = field(default_factory=list)

    def take(
        self,
        theirs: str,
        ours: str,
        change: Tensor | Callable[[Tensor], Tensor] | None = None,
        note: str = "",
    ) -> None:
        """Take a tensor under our name.

        Args:
            theirs: name of one that is left.
            ours: our name.
            change: indices of the rows to take, or a function of the tensor; None: as it is.
            note: how it is changed.
        """
        tensor = self.left.pop(theirs)
        if change is not None:
            tensor = tensor[change] if isinstance(change, Tensor) else change(tensor)
        self.own[ours] = tensor
        self.carried.append(Carried(theirs, ours, note))

    def ignore(self, theirs: str, why: str) -> None:
        """Leave a tensor out."""
        del self.left[theirs]
        self.carried.append(Carried(theirs, None, why))

    def rename(self, table: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]) -> None:
        """Take every tensor whose whole name matches a pattern, under the name beside the first such one."""
        patterns = [(re.compile(pattern), ours) for pattern, ours in table]
        for name in list(self.left):
            for pattern, ours in patterns:
                if match := pattern.fullmatch(name):
                    self.take(name, ours(match) if callable(ours) else match.expand(ours))
                    break

    def reverse_channels(self, ours: str) -> None:
        """Let a convolution that was trained on BGR images read RGB ones."""
        if ours in self.own and self.own[ours].shape[1] == 3:
            self.own[ours] = self.own[ours].flip(1)
            note = "input channels reversed, BGR to RGB"
            self.carried = [item._replace(note=note) if item.ours == ours else item for item in self.carried]


def rows(state: Mapping[str, Tensor], name: str, dim: int = 0) -> int:
    """Side of a tensor that must be there. Raises UserError."""
    if name not in state or state[name].ndim <= dim:
        raise UserError(f"tensor {name} is missing, or not a weight")
    return state[name].shape[dim]


def check_fit(description: Description, own: Mapping[str, Tensor], left: Sequence[str]) -> None:
    """Check that tensors are those of the detector, by name and shape, without a remainder on either side.

    Args:
        description: the detector.
        own: tensors under our names.
        left: names of tensors that have none.

    Raises:
        UserError: they are not; the message says which.
    """
    config = description.config
    what = f"{config.detector} with {config.backbone} and {config.neck}"
    if left:
        raise UserError(f"no place in {what} for {_some(left)}: it is another architecture")
    with torch.device("meta"):
        detector = build(config, [str(i) for i in range(description.num_classes)])
    shapes = {name: tuple(tensor.shape) for name, tensor in detector.state_dict().items()}
    missing = [name for name in shapes if name not in own and not name.endswith(_COUNTERS)]
    if missing:
        raise UserError(f"not a whole {what}: {_some(missing)} missing")
    for name, tensor in own.items():
        if name not in shapes:
            raise UserError(f"no place in {what} for what would be {name}: it is another architecture")
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(f"{name} of this {what} would be {shapes[name]}, but is {tuple(tensor.shape)}")


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def summary_of(carried: Sequence[Carried]) -> list[str]:
    """Lines that count what became of the tensors, and name what was changed or ignored."""
    counts = Counter(item.kind for item in carried)
    words = {"used": "under the same name", "renamed": "renamed", "changed": "changed", "ignored": "ignored"}
    counted = [f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind]]
    lines = [f"{len(carried)} tensors: {', '.join(counted)}"]
    for kind in ("changed", "ignored"):
        notes: dict[str, list[str]] = {}
        for item in carried:
            if item.kind == kind:
                notes.setdefault(item.note, []).append(item.theirs)
        lines += [f"{kind} ({note}): {_some(names)}" for note, names in notes.items()]
    return lines


def coco_classes() -> dict[str, int]:
    """COCO's 80 classes and their category ids, in order, as torchvision lists them."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {name: label for label, name in enumerate(names) if name not in ("__background__", "N/A")}
