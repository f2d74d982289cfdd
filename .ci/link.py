"""Link an installed distribution and all that it requires into another folder: `link.py NAME FOLDER`."""

import importlib.metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement


def link(name: str, folder: Path) -> None:
    """Link `name` and, recursively, what it requires without extras."""
    waiting, seen = [name], set()
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


if __name__ == "__main__":
    link(sys.argv[1], Path(sys.argv[2]))
