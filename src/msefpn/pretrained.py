"""Detectors by name: torchvision's with COCO weights, and repositories of the Hugging Face hub.

The names are here, so that a wrong one is refused before torch is imported; what torchvision says of its
weights (address, hash, classes, figures) is asked of its own enumerations.
"""

# ruff: noqa: PLC0415  (torch and the hub's client are slow to import)
from __future__ import annotations

import contextlib
import difflib
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from msefpn.errors import UserError, unknown_name
from msefpn.reading import digest_of

HUB = "hf://"
"""How a repository of the Hugging Face hub begins: hf://USER/NAME or hf://USER/NAME@REVISION."""
HUB_FILE = "model.safetensors"
"""The weights in such a repository."""
LICENCE = "BSD-3-Clause"
"""torchvision's; it names none of its own for the weights."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_TIMEOUT = 30.0
"""Seconds to wait for the next bytes."""


class Pretrained(NamedTuple):
    """How one of torchvision's detectors is built here."""

    enumeration: str
    """torchvision's enumeration of its weights, whose member `COCO_V1` is meant."""
    detector: str
    norm_eps: float = 1e-5
    """Epsilon of batch normalisation; torchvision sets 0 for the oldest weights."""
    options: Mapping[str, Any] = _NOTHING
    """Options of the detector beside its preset."""
    neck_options: Mapping[str, Any] = _NOTHING


PRETRAINED = {
    "fasterrcnn_resnet50_fpn": Pretrained("FasterRCNN_ResNet50_FPN_Weights", "faster_rcnn", 0.0),
    "maskrcnn_resnet50_fpn": Pretrained("MaskRCNN_ResNet50_FPN_Weights", "mask_rcnn", 0.0),
    "retinanet_resnet50_fpn": Pretrained("RetinaNet_ResNet50_FPN_Weights", "retinanet", 0.0),
    "retinanet_resnet50_fpn_v2": Pretrained(
        "RetinaNet_ResNet50_FPN_V2_Weights",
        "retinanet",
        options={"head": {"norm": True}},
        neck_options={"extra_levels": "conv_c5_relu"},
    ),
    "fcos_resnet50_fpn": Pretrained("FCOS_ResNet50_FPN_Weights", "fcos"),
}
"""By torchvision's names of its functions. The v2 of the two-stage detectors have layers that ours lack."""


class PublishedWeights(NamedTuple):
    """What torchvision says of a detector's COCO weights."""

    url: str
    categories: tuple[str, ...]
    """By label; 0 is background, and `N/A` are labels that COCO does not use."""
    ap: float
    """Of boxes on COCO val2017, percent."""
    mask_ap: float | None
    """Of masks; None: it draws none."""
    megabytes: float
    """Size of the file."""

    @property
    def classes(self) -> dict[int, str]:
        """Label -> name of the classes that there are; the labels are COCO's category ids."""
        return {
            label: name for label, name in enumerate(self.categories) if name not in ("__background__", "N/A")
        }


def check_hub_name(source: str | Path) -> tuple[str, str | None]:
    """Return the repository and revision of `hf://USER/NAME@REVISION`. Raises UserError."""
    found = re.fullmatch(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", str(source))
    if found is None:
        raise UserError(f"{source} is not a repository of the hub: write hf://USER/NAME")
    return found[1], found[2]


def similar_name(source: str | Path) -> str:
    """Return a hint with the closest name of `PRETRAINED`, empty where none is close."""
    close = difflib.get_close_matches(str(source), PRETRAINED, n=1)
    return f"did you mean '{close[0]}'? " if close else ""


def published_weights(name: str) -> PublishedWeights:
    """Ask torchvision for what it says of the weights of a name. Raises UserError for an unknown name."""
    if name not in PRETRAINED:
        raise unknown_name("pretrained detector", name, PRETRAINED)
    from torchvision.models import detection

    weights = getattr(detection, PRETRAINED[name].enumeration).COCO_V1
    figures = weights.meta["_metrics"]["COCO-val2017"]
    return PublishedWeights(
        weights.url,
        tuple(weights.meta["categories"]),
        figures["box_map"],
        figures.get("mask_map"),
        weights.meta["_file_size"],
    )


def cached_file(url: str) -> Path:
    """Where torchvision keeps the file of an address: below TORCH_HOME."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)


def fetch_pretrained(name: str) -> Path:
    """Return the file of a name's weights, downloaded if it is not in the cache; its hash is checked.

    Raises:
        UserError: it cannot be downloaded, or it is another file.
    """
    url = published_weights(name).url
    path = cached_file(url)
    if not path.is_file():
        _download(name, url, path)
    expected = _hash_in(path)
    digest = digest_of(path)
    if not digest.startswith(expected):
        raise UserError(
            f"{path} is not the file that torchvision published: its SHA-256 begins with "
            f"{digest[: len(expected)]}, not {expected}: remove it, and it is downloaded again from {url}"
        )
    return path


def _hash_in(path: Path) -> str:
    """The first digits of the hash, which are in the file's name: name-258fb6c6.pth."""
    found = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if found is None:
        raise ValueError(f"{path.name} has no hash in its name")
    return found[1]


def _download(name: str, url: str, path: Path) -> None:
    import torch

    try:
        with _new_parents(path), _timeout():
            torch.hub.download_url_to_file(url, str(path), _hash_in(path), progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())[:120]
        raise UserError(
            f"weights of {name} cannot be downloaded ({reason}): download {url} elsewhere and put it at "
            f"{path}"
        ) from None


@contextlib.contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Make the folders above a file; after an error remove those that were missing."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def fetch_from_hub(source: str | Path, **options: Any) -> Path:
    """Return the weights of a repository of the hub, downloaded if they are not in the hub's cache.

    Args:
        source: hf://USER/NAME, see `check_hub_name`.
        options: those of huggingface_hub's `hf_hub_download`.

    Raises:
        UserError: the name is not one, the hub cannot be reached, or there are no weights of ours.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    repository, revision = check_hub_name(source)
    try:  # the client itself retries for half a minute where there is no network
        if not options.get("local_files_only"):
            url = hub.hf_hub_url(repository, HUB_FILE, revision=revision)
            hub.get_hf_file_metadata(url, token=options.get("token"), timeout=_TIMEOUT)
        return Path(hub.hf_hub_download(repository, HUB_FILE, revision=revision, **options))
    except RepositoryNotFoundError:
        reason = "the repository is missing or private: log in with hf auth login"
    except EntryNotFoundError:
        reason = f"the repository has no {HUB_FILE}: it was not written by push_to_hub of msefpn"
    except Exception as error:  # the client and the network each have their own
        folder = options.get("cache_dir")
        cached = hub.try_to_load_from_cache(repository, HUB_FILE, cache_dir=folder, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        reason = " ".join(str(error).split())[:160]
    raise UserError(
        f"{HUB}{repository} cannot be read ({reason}); a {HUB_FILE} that was downloaded elsewhere is used "
        "like any file of weights"
    )
