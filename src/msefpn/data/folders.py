"""Folders that are made completely or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished_folder(final: Path) -> Iterator[Path]:
    """Make a hidden folder beside `final`, to be filled and then renamed by `work.replace(final)`.

    It is removed at the end if it was not renamed. Raises OSError.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        work.chmod(0o755)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
