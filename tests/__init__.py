"""What the tests share: where things lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "tiny.yaml"
"""A recipe that trains in a second or two."""
