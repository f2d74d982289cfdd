"""Look up known vulnerabilities of the locked packages: `audit.py requirements.lock`.

Exits with 1 where there are some, and where a package was not looked up: pip-audit alone skips it in silence.
"""

import json
import subprocess
import sys
from typing import Any


def summary(output: str) -> tuple[int, list[str]]:
    """Exit code and lines for what pip-audit printed as json, or for no json."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except ValueError:
        return 1, ["error: no package was audited: the advisory service cannot be reached"]
    lines = []
    for package in packages:
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version"
            lines.append(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        what = f"{len(skipped)} of {len(packages)} packages were not audited, {skipped[0]} the first"
        lines.append(f"error: {what}: the advisory service cannot be reached, or does not know them")
    return (1, lines) if lines else (0, [f"no known vulnerability; packages looked up: {len(packages)}"])


def main(lock: str) -> int:
    """Audit a file of pinned versions with hashes."""
    options = "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"
    command = [sys.executable, "-m", "pip_audit", *options, "--requirement", lock]
    code, lines = summary(subprocess.run(command, capture_output=True, text=True).stdout)
    print(*lines, sep="\n", file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
