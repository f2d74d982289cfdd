"""Which picture a label file is of, where both have names: one to one, or named."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PureWindowsPath

from msefpn.data.finding import SimilarNames, examples, images_in
from msefpn.data.formats.base import LabelFault, ReadLog
from msefpn.data.repair import hint


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
            if not meant or (found is not None and found.resolve() != own[0].resolve()):
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

    def tell_bare(self, used: Collection[Path], what: str) -> None:
        """Note the pictures that no label file was taken for; `used` are those that one was."""
        taken = {file.resolve() for file in used}
        bare = [
            file
            for file in self.by_name.values()
            if file.resolve() not in taken
            and (file.stem not in self.stems or len(self.by_stem[file.stem]) > 1)
        ]
        names = examples(sorted(file.name for file in bare))
        self.log.count(len(bare), f"images have no {what} file and are skipped, {names} among them")
