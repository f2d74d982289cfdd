"""Which picture a label file is of, where both have names: one to one, or named."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PureWindowsPath

from msefpn.data.finding import SimilarNames, examples, files_in, images_in
from msefpn.data.formats.base import LabelFault, ReadLog
from msefpn.data.repair import hint
from msefpn.reading import real_path


def labels_in(folder: Path, *suffixes: str, deep: bool = True) -> list[Path]:
    """The label files of a folder, and of those below it; none where it is not a folder.

    Suffixes are given in lower case, and are found in any.
    """
    files = files_in(folder, deep=deep) if folder.is_dir() else []
    return [file for file in files if file.suffix.lower() in suffixes]


class PairedFolders:
    """The label files below a folder, and the pictures: those of the same path below another folder.

    Where a folder of label files has no folder of pictures of its path, its pictures are in the uppermost.

    Args:
        labels: folder of the label files.
        pictures: folder of the pictures; may be the same.
        suffix: of the label files.
        log: told what was decided.
    """

    def __init__(self, labels: Path, pictures: Path, suffix: str, log: ReadLog) -> None:
        self.files = labels_in(labels, suffix)
        self.root, self.suffix, self.log = pictures, suffix, log
        self.place_of: dict[Path, Path] = {}
        stems: dict[Path, set[str]] = {file.parent: set() for file in images_in(pictures, deep=True)}
        stems.setdefault(pictures, set())
        for file in self.files:
            same = pictures / file.parent.relative_to(labels)
            place = self.place_of[file.parent] = same if same.is_dir() else pictures
            stems.setdefault(place, set()).add(file.stem)
        self.pictures = {place: Pictures(place, names, log) for place, names in stems.items()}

    def of(self, labels: Path, named: str, there: Path | None = None) -> Path:
        """The picture of a label file, see `Pictures.of`."""
        return self.beside(labels).of(labels, named, there)

    def beside(self, labels: Path) -> Pictures:
        """The pictures that a label file may be of."""
        return self.pictures[self.place_of.get(labels.parent, self.root)]

    def tell_bare(self, used: Collection[Path]) -> None:
        """Note the pictures that no label file was taken for; `used` are those that one was."""
        taken = {real_path(file) for file in used}
        bare = sorted(file for pictures in self.pictures.values() for file in pictures.bare(taken))
        names = examples(file.relative_to(self.root).as_posix() for file in bare)
        what = self.suffix.removeprefix(".")
        self.log.count(len(bare), f"images have no {what} file and are skipped, {names} among them")


class Pictures:
    """The pictures of a folder and the label files that they belong to, by their names.

    Args:
        folder: of the pictures.
        stems: names of all label files, without suffix.
        log: told what was decided.
    """

    def __init__(self, folder: Path, stems: Collection[str], log: ReadLog) -> None:
        self.folder = folder
        self.log = log
        self.similar = SimilarNames(folder)
        self.stems = set(stems)
        self.by_name: dict[str, Path] = {}
        self.by_stem: dict[str, list[Path]] = {}
        for file in images_in(folder):
            self.by_name.setdefault(file.name, file)
            self.by_stem.setdefault(file.stem, []).append(file)

    def of(self, labels: Path, named: str, there: Path | None = None) -> Path:
        """The picture of a label file.

        Its own stem goes before what it names: pairs are renamed together, and the text inside is not.

        Args:
            labels: the label file.
            named: the picture that it names, with or without folders; may be empty.
            there: where that leads, if a file is there.

        Raises:
            LabelFault: there is none, or several between which nothing decides.
        """
        name = PureWindowsPath(named).name  # either slash
        found = there or self.by_name.get(name)
        own = self.by_stem.get(labels.stem, [])
        if len(own) > 1:
            if found in own:
                return self._told(labels, found, f"{examples(file.name for file in own)} share its name")
            raise LabelFault(
                f"{labels}: serves {len(own)} pictures, {examples(str(file) for file in own)}: leave one"
            )
        if own:
            meant = labels.stem in (name, PureWindowsPath(name).stem, "" if name else labels.stem)
            if not meant or (found is not None and real_path(found) != real_path(own[0])):
                self.log.tell(
                    "label files name another picture than the one of their own name, which is taken",
                    f"{labels.name} names {name}",
                )
            return own[0]
        if found is None:
            found = self._similar(labels, named or f"{labels.stem}.jpg")
        if found.stem in self.stems and found.stem != labels.stem:
            raise LabelFault(
                f"{labels}: its image is missing: {found.name}, which it names, has labels of its own"
            )
        return found

    def _told(self, labels: Path, found: Path | None, why: str) -> Path:
        assert found is not None
        self.log.tell(
            "label files could be of several pictures, the one that they name is taken",
            f"{labels.name}: {why}",
        )
        return found

    def _similar(self, labels: Path, named: str) -> Path:
        """The picture of a similar name, where that is wanted. Raises LabelFault."""
        found = self.similar.find(named)
        if len(found) == 1 and self.log.fix_names:
            self.log.tell(
                "names of pictures were corrected", f"{named} -> {found[0].relative_to(self.folder)}"
            )
            return found[0]
        raise LabelFault(f"{labels}: its image is missing ('{named}'){hint([str(file) for file in found])}")

    def bare(self, taken: Collection[Path]) -> list[Path]:
        """The pictures without a label file; `taken` are those, resolved, that one was taken for."""
        return [
            file
            for file in self.by_name.values()
            if real_path(file) not in taken
            and (file.stem not in self.stems or len(self.by_stem[file.stem]) > 1)
        ]
