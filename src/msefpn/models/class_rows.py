"""Rows of class layers moved from the classes of one detector to those of another, by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

SHARED = -1
"""Row that belongs to no class, such as one for the box of an anchor."""


@runtime_checkable
class HasClassRows(Protocol):
    """A head with layers whose rows belong to classes; a head of your own may be one."""

    def class_rows(self, num_classes: int) -> dict[str, list[int]]:
        """Class of each row of its layers.

        Args:
            num_classes: K, which may be another detector's.

        Returns:
            Name of a layer inside the head -> for each row of its weight and bias the class 0..K-1, K for
            background, or `SHARED`. Layers without rows of classes are left out.
        """


class MovedRows(NamedTuple):
    """What became of the class layers of a state dict."""

    state: dict[str, Tensor]
    """Class layers have the rows of the new classes; those of which no row is kept are missing."""
    kept: tuple[str, ...]
    """Classes whose rows were kept; empty also where there are no such layers."""
    new: tuple[str, ...]
    """Classes whose rows stay as they were in the detector."""
    dropped: tuple[str, ...]
    """Tensors that are missing."""


def move_class_rows(
    state: Mapping[str, Tensor], classes: Sequence[str], detector: nn.Module, own: Sequence[str]
) -> MovedRows:
    """Bring the class layers of a state dict to the classes of a detector.

    Rows of classes that both have are kept, and with any of them those of background; rows of other classes
    are the detector's own.

    Args:
        state: tensors under the detector's names.
        classes: names of the classes that they detect, in order.
        detector: gives the layout of the layers, and the rows of its other classes.
        own: names of its classes, in order.
    """
    theirs = {name: row for row, name in enumerate(classes)}
    pairs = {row: theirs[name] for row, name in enumerate(own) if name in theirs}
    if pairs:
        pairs[len(own)] = len(classes)
    pairs[SHARED] = SHARED
    present, moved, dropped = detector.state_dict(), dict(state), list[str]()
    found = False
    for prefix, head in detector.named_modules():
        if not isinstance(head, HasClassRows):
            continue
        before = head.class_rows(len(classes))
        for layer, rows in head.class_rows(len(own)).items():
            source = _rows_from(rows, before[layer], pairs)
            for part in ("weight", "bias"):
                name = f"{prefix}.{layer}.{part}"
                if name not in state or name not in present:
                    continue
                if len(state[name]) != len(before[layer]) or state[name].shape[1:] != present[name].shape[1:]:
                    continue  # of another width: it fits nowhere
                found = True
                if all(row is None for row in source):
                    del moved[name]
                    dropped.append(name)
                else:
                    moved[name] = _with_rows(present[name], state[name], source)
    kept = tuple(own[row] for row in pairs if 0 <= row < len(own)) if found else ()
    new = tuple(name for name in own if name not in kept) if found else ()
    return MovedRows(moved, kept, new, tuple(sorted(dropped)))


def _rows_from(rows: Sequence[int], before: Sequence[int], pairs: Mapping[int, int]) -> list[int | None]:
    """For each row the one that it takes: the same in number among those of its class; None: its own."""
    places: dict[int, list[int]] = {}
    for place, label in enumerate(before):
        places.setdefault(label, []).append(place)
    seen: dict[int, int] = {}
    source: list[int | None] = []
    for label in rows:
        number = seen[label] = seen.get(label, -1) + 1
        theirs = places.get(pairs[label], []) if label in pairs else []
        source.append(theirs[number] if number < len(theirs) else None)
    return source


def _with_rows(own: Tensor, theirs: Tensor, source: Sequence[int | None]) -> Tensor:
    """The rows of a layer, taken from `source` where that is not None."""
    rows = torch.tensor([row for row, place in enumerate(source) if place is not None])
    places = torch.tensor([place for place in source if place is not None])
    moved = own.detach().cpu().clone()
    moved[rows] = theirs[places].to(moved.dtype)
    return moved
