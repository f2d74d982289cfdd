"""What the tests share: where things lie."""

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
"""A recipe that trains in a second or two."""


def hard_link(source: Path, target: Path) -> None:
    """Put a file, or a folder with all in it, in a second place without a copy."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        os.link(source, target)
