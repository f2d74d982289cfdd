"""Link what an installed distribution requires into another folder: `link.py NAME FOLDER`.

Linked packages share their bytecode: installed anew, each would be compiled anew.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

from packaging.requirements import Requirement


def link(name: str, folder: Path) -> None:
    """Link what `name` requires, recursively and without extras, and itself unless it is editable."""
    waiting, seen = [name], set()
    while waiting:
        distribution = importlib.metadata.distribution(waiting.pop())
        if distribution.name in seen:
            continue
        seen.add(distribution.name)
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        editable = origin.get("dir_info", {}).get("editable", False)
        files = () if editable else distribution.files or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)


if __name__ == "__main__":
    link(sys.argv[1], Path(sys.argv[2]))
