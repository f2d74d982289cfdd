"""Annotations as the evaluation takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from msefpn.data.coco import CocoData
from msefpn.data.masks import run_lengths
from msefpn.errors import UserError


def truth_of(data: CocoData) -> dict[str, Any]:
    """The annotations as read and fixed, in COCO's format; the areas are the file's."""
    owner = np.repeat(data.ids, np.diff(data.offsets))
    boxes = np.concatenate([data.boxes[:, :2], data.boxes[:, 2:] - data.boxes[:, :2]], 1).astype(np.float64)
    annotations = [
        {
            "id": row + 1,
            "image_id": int(owner[row]),
            "category_id": data.category_ids[data.labels[row]],
            "bbox": boxes[row].tolist(),
            "area": float(data.areas[row]),
            "iscrowd": int(data.crowd[row]),
        }
        for row in range(len(boxes))
    ]
    if data.masks is not None:
        sizes = np.repeat(data.sizes, np.diff(data.offsets), axis=0)
        for item, counts, size in zip(annotations, data.masks.counts(range(len(boxes))), sizes, strict=True):
            item["segmentation"] = run_lengths(counts, size)
    categories = zip(data.category_ids, data.classes, strict=True)
    return {
        "images": [
            {"id": int(id), "file_name": name, "height": int(size[0]), "width": int(size[1])}
            for id, name, size in zip(data.ids, data.names, data.sizes, strict=True)
        ],
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in categories],
    }


def category_ids_for(classes: Sequence[str], data: CocoData, owner: str) -> list[int]:
    """The data's category id for each of a detector's classes. Raises UserError where they differ.

    Args:
        classes: names, in the order of the detector's labels.
        data: has the same names, in any order.
        owner: whose classes these are, for the message.
    """
    ids = dict(zip(data.classes, data.category_ids, strict=True))
    missing, other = sorted(set(classes) - ids.keys()), sorted(ids.keys() - set(classes))
    if missing or other:
        differences = [f"{_some(missing)} only in {owner}"] * bool(missing)
        differences += [f"{_some(other)} only in {data.file}"] * bool(other)
        raise UserError(f"classes differ: {'; '.join(differences)}: use data with the classes of {owner}")
    return [ids[name] for name in classes]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
