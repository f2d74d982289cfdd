"""Tables as the pages of docs/results have them."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(*(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)), sep="\n")
    print(flush=True)
