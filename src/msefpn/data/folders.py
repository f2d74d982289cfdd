"""Folders that are made completely or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished_folder(final: Path) -> Iterator[Path]:
    """Make a hidden folder beside `final`, to be filled and then renamed by `work.replace(final)`.

    It is removed at the end if it was not renamed. Raises OSError.
    """
    work = final.with_name(f".{final.name}-{uuid.uuid4().hex[:8]}")
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
