"""What can be wrong in a data set, and what is done about it."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from msefpn.errors import UserError

STOPS = {
    "missing json": "give the path of a COCO json file",
    "not JSON": "write the file again",
    "missing key": "add it; COCO's format needs it",
    "wrong value": "mend it in the json",
    "no images": "list the images under 'images'",
    "no categories": "list the classes under 'categories'",
    "no boxes": "annotate at least one object",
    "duplicate image id": "give every image its own id",
    "duplicate category": "give every category its own id and name",
    "unknown category": "add the category to 'categories' or remove the annotation",
    "no mask": "draw it as polygons or run lengths, or use a detector without masks",
    "broken mask": "draw it anew as polygons or run lengths of the image's size",
    "missing folder": "give the folder of the images",
    "missing image": "restore the file or remove the image from the json",
}
"""Faults that nobody but the user can mend, and how."""

OF_MASKS = ("no mask", "broken mask")
"""Those that are looked for only where masks are wanted."""

MENDED = {
    "unreadable image": "dropped with its boxes",
    "unknown image": "annotation dropped",
    "bbox without 4 numbers": "dropped",
    "NaN box": "dropped",
    "inverted box": "dropped",
    "zero-area box": "dropped",
    "outside box": "dropped",
    "box under 1 px": "dropped, as mmdetection does",
    "repeated annotation": "dropped",
    "box larger than the image": "clipped",
    "box sticks out": "clipped",
    "duplicate annotation id": "both kept",
    "size not in the json": "taken from the file",
    "size differs from the json": "taken from the file",
    "EXIF rotation": "applied where it fits the json's size",
    "grey image": "made RGB",
    "alpha channel": "dropped",
    "16-bit image": "scaled to 8 bit",
    "CMYK image": "made RGB",
    "image without boxes": "kept; trained on where keep_empty is true",
}
"""Faults that are mended, and how."""


class Fault(NamedTuple):
    """One fault."""

    kind: str
    """A key of STOPS or MENDED."""
    file: str
    """The image file, or the json."""
    id: int | str | None
    """Which one: 'image 3', 'annotation 7', 'images[0]'."""
    text: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.file, f"({self.id})" if self.id else "", self.text) if part)


class Report:
    """The faults of one annotation file, in the order found."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.faults: list[Fault] = []

    def add(self, kind: str, file: str, id: int | str | None = None, text: str = "") -> None:
        """Note a fault; `kind` is a key of STOPS or MENDED."""
        self.faults.append(Fault(kind, file, id, text))

    @property
    def counts(self) -> dict[str, int]:
        """Kind of fault -> how many, those that stop a run first."""
        count = Counter(fault.kind for fault in self.faults)
        return {kind: count[kind] for kind in (*STOPS, *MENDED) if count[kind]}

    def of(self, kind: str) -> list[Fault]:
        """Return the faults of one kind."""
        return [fault for fault in self.faults if fault.kind == kind]

    @property
    def stops(self) -> list[Fault]:
        """The faults that only the user can mend."""
        return [fault for fault in self.faults if fault.kind in STOPS]

    def raise_if_stopped(self) -> None:
        """Raise a UserError of one line for the first fault that cannot be mended."""
        if not self.stops:
            return
        first, more = self.stops[0], len(self.stops) - 1
        where = "" if first.file == str(self.file) else f"{self.file}: "
        option = " --masks" if first.kind in OF_MASKS else ""
        rest = f" ({more} more such faults: 'msefpn check{option}' lists them)" if more else ""
        raise UserError(f"{where}{first.kind}: {first}: {STOPS[first.kind]}{rest}")

    def lines(self, most: int = 5) -> list[str]:
        """Return the faults as text: one line per kind, then at most `most` examples each."""
        lines = []
        for kind, count in self.counts.items():
            done = f"stops a run: {STOPS[kind]}" if kind in STOPS else MENDED[kind]
            lines.append(f"{count} x {kind}: {done}")
            lines += [f"    {fault}" for fault in self.of(kind)[:most]]
            lines += [f"    and {count - most} more"] * (count > most)
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
