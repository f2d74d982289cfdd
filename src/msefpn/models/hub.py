"""Detectors on the Hugging Face hub: written to and read from a folder or a repository there."""

# ruff: noqa: PLC0415  (msefpn.models.weights imports the detectors)
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from huggingface_hub import ModelCard, ModelHubMixin

from msefpn.checkpoint import write_info
from msefpn.config import from_dict, to_yaml
from msefpn.errors import UserError
from msefpn.pretrained import HUB, HUB_FILE, fetch_from_hub

if TYPE_CHECKING:
    from msefpn.models.detectors import Detector

_HEAD = """---
library_name: msefpn
pipeline_tag: object-detection
tags: [object-detection, pytorch, feature-pyramid]
{licence}---

# {title}

{classes}

```sh
msefpn predict {source} photos
```

```python
import msefpn

detector = msefpn.load("{source}")
```
"""


class OnHub(ModelHubMixin, library_name="msefpn"):
    """`save_pretrained`, `push_to_hub` and `from_pretrained` of a detector.

    Attributes:
        describe: writes what goes with the weights, such as a picture, into a folder, and returns what the
            model card says of the training; None: the card says nothing of it. `msefpn.load` sets it for a
            run.
    """

    describe: Callable[[Path], str] | None = None

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str | None:
        """Write weights, configuration and a model card into a new folder.

        Args:
            save_directory: the folder; empty, or not there yet.
            model_card_kwargs: `license`, as the hub names licences, such as apache-2.0, and `repository`,
                USER/NAME, which the card tells readers to load.
            options: those of huggingface_hub's `ModelHubMixin.save_pretrained`.

        Returns:
            The address of the commit where `push_to_hub=True` is among the options, else None.

        Raises:
            UserError: the folder holds something.
        """
        folder = Path(save_directory)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise UserError(f"'{folder}' holds something: name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        body = "" if self.describe is None else self.describe(folder)
        about = {"body": body, **(model_card_kwargs or {})}
        return super().save_pretrained(folder, model_card_kwargs=about, **options)

    def push_to_hub(
        self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> str:
        """Write what `save_pretrained` writes into a repository of the hub, which is made if it is not there.

        Args:
            repo_id: USER/NAME.
            model_card_kwargs: see `save_pretrained`.
            options: those of huggingface_hub's `ModelHubMixin.push_to_hub`, such as private=True.

        Raises:
            UserError: the hub cannot be reached, or refuses.
        """
        about = {"repository": repo_id, **(model_card_kwargs or {})}
        try:
            return super().push_to_hub(repo_id, model_card_kwargs=about, **options)
        except UserError:
            raise
        except Exception as error:  # the client and the network each have their own
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{HUB}{repo_id} cannot be written ({reason}): log in with hf auth login, or write a folder "
                "with save_pretrained"
            ) from None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Read a detector, in evaluation mode, from a folder of `save_pretrained` or from the hub.

        Args:
            pretrained_model_name_or_path: the folder, or USER/NAME.
            options: revision, cache_dir, force_download, token and local_files_only, as huggingface_hub has
                them.

        Raises:
            UserError: there are no weights, they are damaged, they are of another kind of detector, or the
                hub cannot be reached.
        """
        from msefpn.models.weights import load

        source = Path(pretrained_model_name_or_path)
        if source.is_dir():
            file = source / HUB_FILE
        else:
            revision = options.pop("revision", None)
            name = f"{HUB}{pretrained_model_name_or_path}" + (f"@{revision}" if revision else "")
            file = fetch_from_hub(name, **options)
        found: Any = load(file)
        if not isinstance(found, cls):
            raise UserError(
                f"{pretrained_model_name_or_path} holds a {found.config.detector}, not a {cls.__name__}: use "
                "Detector.from_pretrained"
            )
        return found

    def _save_pretrained(self, save_directory: Path) -> None:
        from msefpn.models.weights import save

        detector = cast("Detector", self)
        save(detector, save_directory / HUB_FILE)
        info = write_info(detector.config, detector.classes, detector.category_ids)
        (save_directory / "config.json").write_text(json.dumps(info, indent=2), encoding="utf-8")

    def generate_model_card(self, *args: Any, **about: Any) -> ModelCard:
        """The model card: what it detects, how to use it, and what is known of its training and licence."""
        detector = cast("Detector", self)
        config, names = detector.config, detector.classes
        few = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        licence = about.get("license")
        head = _HEAD.format(
            licence=f"license: {licence}\n" if licence else "",
            title=f"{config.detector}, {config.backbone}, {config.neck}",
            classes=f"Detects {len(names)} class{'es' if len(names) > 1 else ''}: {few}.",
            source=f"{HUB}{about.get('repository', 'USER/NAME')}",
        )
        said = write_info(config, names, detector.category_ids)["config"]
        settings = to_yaml(from_dict(said, source="model card"))
        terms = f"Weights: {licence}." if licence else "The licence of the weights is not stated."
        parts = [
            head,
            about.get("body", ""),
            f"## Configuration\n\n```yaml\n{settings}```\n",
            f"## Licence\n\n{terms} The code, msefpn, is under Apache-2.0.\n",
        ]
        return ModelCard("\n".join(part for part in parts if part))
