"""torchvision's detectors with COCO weights, as ours."""

from collections.abc import Mapping

from torch import Tensor

from msefpn.checkpoint import DetectorInfo, read_info
from msefpn.errors import UserError
from msefpn.models.blank import blank
from msefpn.models.detectors import Detector
from msefpn.models.factory import build
from msefpn.models.importers.base import Names
from msefpn.models.importers.files import read_checkpoint
from msefpn.models.importers.torchvision import convert_torchvision
from msefpn.pretrained import fetch_pretrained


def read_pretrained(name: str) -> tuple[DetectorInfo, dict[str, Tensor]]:
    """Return what the weights of a name are of, and its tensors under our names.

    Args:
        name: key of `msefpn.pretrained.PRETRAINED`.

    Raises:
        UserError: they cannot be downloaded, or the file in the cache is another one.
    """
    path = fetch_pretrained(name)
    content = read_checkpoint(path).state
    info = read_info(name)
    try:
        return info, convert_pretrained(info, content)
    except ValueError as error:
        raise UserError(f"{path} is not a {name}: {error}; remove it, and it is downloaded again") from None


def convert_pretrained(info: DetectorInfo, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename all of torchvision's tensors, and bring the rows of classes to our order.

    Raises:
        ValueError: a tensor has no place, or a place has no tensor.
    """
    with blank():
        own = build(*info)
    names = Names(dict(state))
    convert_torchvision(names, info.category_ids)
    converted, left_out = names.own, list(names.left)
    for name, tensor in own.state_dict().items():
        if name.endswith("num_batches_tracked"):
            converted.pop(name, None)
        elif name not in converted:
            left_out.append(f"{name} (missing)")
        elif converted[name].shape != tensor.shape:
            left_out.append(f"{name} {tuple(converted[name].shape)}")
    if left_out:
        raise ValueError(f"no place for {', '.join(left_out[:4])}")
    return converted


def load_pretrained(name: str) -> Detector:
    """Return a detector that detects COCO's 80 classes as torchvision's does, in evaluation mode.

    Args:
        name: key of `msefpn.pretrained.PRETRAINED`.

    Raises:
        UserError: see `read_pretrained`.
    """
    info, state = read_pretrained(name)
    detector = build(*info)
    detector.load_state_dict(state, strict=False)  # the counters of batch normalisation are not in the file
    return detector.eval()
