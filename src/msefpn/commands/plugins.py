"""`msefpn plugins`."""

from __future__ import annotations

from msefpn.errors import unknown_name
from msefpn.plugins import KINDS, known


def list_plugins(*, kind: str | None = None) -> dict[str, dict[str, str]]:
    """List the names of each kind that configurations may hold, and where they come from.

    Timm's backbones, which have hundreds of names, are not listed.

    Args:
        kind: neck, backbone, detector, loss, augmentation, format, logger or callback (default: all)

    Returns:
        Kind -> name -> origin.

    Raises:
        UserError: an unknown kind, or a plug-in that cannot be imported.
    """
    from msefpn.runs.console import show_table  # noqa: PLC0415  (rich is slow to import)

    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of plug-in", kind, KINDS)
    found = {
        one: {name: plugin.origin for name, plugin in sorted(known(one).items())}
        for one in (KINDS if kind is None else (kind,))
    }
    rows = [[one, name, origin] for one, names in found.items() for name, origin in names.items()]
    show_table(["kind", "name", "from"], rows)
    return found
