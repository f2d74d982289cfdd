"""What can be wrong in a data set, and what is done about it."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from msefpn.errors import UserError


class Handling(NamedTuple):
    """What is said and done about a kind of fault."""

    plural: str
    """The kind's name for several of them."""
    action: str
    """Of a fault that stops a run: what the user has to do. Otherwise: what was done."""
    changes: bool = False
    """Whether that changes what comes out."""


STOPS = {
    "missing json": Handling("missing json files", "give the path of a COCO json file"),
    "not JSON": Handling("files that are not JSON", "write the file again"),
    "missing key": Handling("missing keys", "add it; COCO's format needs it"),
    "wrong value": Handling("wrong values", "fix it in the json"),
    "no images": Handling("jsons without images", "list the images under 'images'"),
    "no categories": Handling("jsons without categories", "list the classes under 'categories'"),
    "no boxes": Handling("jsons without usable boxes", "annotate at least one object"),
    "duplicate image id": Handling("duplicate image ids", "give every image its own id"),
    "duplicate category": Handling("duplicate categories", "give every category its own id and name"),
    "unknown category": Handling(
        "unknown categories", "add the category to 'categories' or remove the annotation"
    ),
    "no mask": Handling(
        "objects without a mask", "draw it as polygons or run lengths, or use a detector without masks"
    ),
    "broken mask": Handling("broken masks", "draw it again as polygons or run lengths of the image's size"),
    "missing folder": Handling("missing folders", "give the folder of the images"),
    "missing image": Handling("missing images", "restore the file or remove the image from the json"),
    "image of two sizes": Handling(
        "images listed with several sizes", "give the file's real size, with boxes that fit it"
    ),
    "outside image": Handling(
        "images outside the data folder", "name the folder of the images, or correct the names"
    ),
}
"""Kinds of fault that only the user can fix; a run does not start."""

MASK_FAULTS = ("no mask", "broken mask")
"""Kinds that are looked for only where masks are read."""

HANDLING = {
    "unreadable image": Handling("unreadable images", "dropped, boxes included", changes=True),
    "size of another picture": Handling(
        "images whose stated size has another shape",
        "dropped, boxes included: correct the size",
        changes=True,
    ),
    "corrected name": Handling("file names of pictures", "corrected", changes=True),
    "image listed again": Handling("images listed again", "merged, their boxes united", changes=True),
    "unclear iscrowd": Handling(
        "values of iscrowd that are neither 0 nor 1", "dropped, the annotation too", changes=True
    ),
    "unknown image": Handling("annotations of unknown images", "dropped", changes=True),
    "bbox without 4 numbers": Handling("bboxes without 4 numbers", "dropped", changes=True),
    "NaN box": Handling("NaN boxes", "dropped", changes=True),
    "inverted box": Handling("inverted boxes", "dropped", changes=True),
    "zero-area box": Handling("zero-area boxes", "dropped", changes=True),
    "outside box": Handling("boxes outside their image", "dropped", changes=True),
    "box under 1 px": Handling("boxes under 1 px", "dropped, as in mmdetection", changes=True),
    "repeated annotation": Handling("repeated annotations", "dropped", changes=True),
    "box larger than the image": Handling("boxes larger than the image", "clipped"),
    "box partly outside": Handling("boxes partly outside their image", "clipped"),
    "duplicate annotation id": Handling("duplicate annotation ids", "both kept"),
    "size not in the json": Handling("image sizes not in the json", "taken from the file"),
    "size differs from the json": Handling("image sizes that differ from the json", "taken from the file"),
    "resized image": Handling(
        "images whose stated and real size differ by one factor", "rescaled, boxes and outlines", changes=True
    ),
    "degenerate polygon": Handling(
        "objects with degenerate polygons", "dropped, the other polygons kept", changes=True
    ),
    "object without a box": Handling("objects without a box", "boxes made from their outlines", changes=True),
    "equal box": Handling("boxes equal to another of the class in their image", "all kept"),
    "several frames": Handling("files of several frames", "the first frame is taken", changes=True),
    "EXIF rotation": Handling("EXIF rotations", "applied where the json's size agrees"),
    "alpha channel": Handling("alpha channels", "dropped", changes=True),
    "16-bit image": Handling("16-bit images", "scaled to 8 bits", changes=True),
    "CMYK image": Handling("CMYK images", "converted to RGB"),
    "image without objects": Handling("images without objects", "kept"),
}
"""Kinds of fault that do not stop a run."""


class DataFault(NamedTuple):
    """One fault."""

    kind: str
    """A key of STOPS or HANDLING."""
    file: str
    """The image file, or the json."""
    id: int | str | None
    """Which one: 'image 3', 'annotation 7', 'images[0]'."""
    text: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.file, f"({self.id})" if self.id else "", self.text) if part)


class FaultReport:
    """The faults of one annotation file, in the order found."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.faults: list[DataFault] = []

    def add(self, kind: str, file: str, id: int | str | None = None, text: str = "") -> None:
        """Note a fault; `kind` is a key of STOPS or HANDLING."""
        self.faults.append(DataFault(kind, file, id, text))

    @property
    def counts(self) -> dict[str, int]:
        """Kind of fault -> how many, those that stop a run first."""
        count = Counter(fault.kind for fault in self.faults)
        return {kind: count[kind] for kind in (*STOPS, *HANDLING) if count[kind]}

    def of(self, kind: str) -> list[DataFault]:
        """Return the faults of one kind."""
        return [fault for fault in self.faults if fault.kind == kind]

    @property
    def stops(self) -> list[DataFault]:
        """The faults that only the user can fix."""
        return [fault for fault in self.faults if fault.kind in STOPS]

    def raise_if_stopped(self) -> None:
        """Raise a UserError of one line for the first fault that only the user can fix."""
        if not self.stops:
            return
        first, more = self.stops[0], len(self.stops) - 1
        where = "" if first.file == str(self.file) else f"{self.file}: "
        option = " --masks" if first.kind in MASK_FAULTS else ""
        rest = f" ({more} more such faults: 'msefpn check{option}' lists them)" if more else ""
        raise UserError(f"{where}{first.kind}: {first}: {STOPS[first.kind].action}{rest}")

    def lines(self, most: int = 5) -> list[str]:
        """Return the faults as text: one line per kind, then at most `most` examples each."""
        lines = []
        for kind, count in self.counts.items():
            done = f"stops a run: {STOPS[kind].action}" if kind in STOPS else HANDLING[kind].action
            lines.append(f"{counted(kind, count)}: {done}")
            lines += [f"    {fault}" for fault in self.of(kind)[:most]]
            lines += [f"    and {count - most} more"] * (count > most)
        return lines

    def summary(self, *, changes_only: bool = False) -> list[str]:
        """Return one phrase per kind that does not stop a run: '43 images without objects (kept)'."""
        return [
            f"{counted(kind, count)} ({HANDLING[kind].action})"
            for kind, count in self.counts.items()
            if kind in HANDLING and (not changes_only or HANDLING[kind].changes)
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def counted(kind: str, count: int) -> str:
    """Write a number of faults of one kind: '1 grey image', '2 grey images'."""
    return f"{count} {kind if count == 1 else (STOPS | HANDLING)[kind].plural}"
