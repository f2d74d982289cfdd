"""Run folders at addresses of other file systems, and their copies on this machine.

A training works in a folder of this machine and uploads what has changed after each set of files. Files that
belong together take their places together there too: all are uploaded under the names that `part_of` gives,
then the journal that names them, and then they are renamed. If the process dies, the next reader of the
folder takes all of these files or none: all if the journal was written.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from msefpn import remote
from msefpn.errors import UserError
from msefpn.places import as_address
from msefpn.reading import parse_json
from msefpn.runs.console import say, telling_as, told_as
from msefpn.runs.folder import BEST, CONFIG, DATA, LAST, LOG, METRICS, PREDICTIONS, RESUME, STEPS
from msefpn.runs.peers import Peers
from msefpn.writing import JOURNAL, is_leftover, part_of, settle

_FOR_REPORTS = (CONFIG, DATA, BEST, LOG, STEPS, METRICS, PREDICTIONS)
"""What a report reads of a run."""


class RemoteRun:
    """A run folder at an address, and the folder of this machine that a training works in.

    Args:
        address: of the run folder.
        folder: on this machine.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder
        self.failed = False
        """Whether the last upload failed: then the folder of this machine is the only complete copy."""
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Copy the run folder to this machine, and finish what a process that died had uploaded.

        Raises:
            UserError: it does not exist, or cannot be read or written.
        """
        left = fetch_run(self.address, self.folder)
        if left:
            for name in left:
                part = self._at(part_of(Path(name)).name)
                if remote.kind_at(part) is not None:
                    remote.rename_at(part, self._at(name))
            remote.remove_at(self._at(JOURNAL))
        self._sent = self._stamps()

    def send(self) -> None:
        """Upload what has changed. Raises UserError, which names the folder of this machine."""
        try:
            self._send()
        except UserError as error:
            if not (self.folder / RESUME).exists():  # there is nothing to lose yet
                raise
            self.failed = True
            raise UserError(f"{error}; the run is whole in '{self.folder}': resume it there") from None

    def _send(self) -> None:
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._sent.get(name) != stamp]
        together = [name for name in changed if "/" not in name]
        for name in changed:
            if "/" in name or len(together) == 1:
                remote.copy_to(self.folder / name, self._at(name))
        if len(together) > 1:
            for name in together:
                remote.copy_to(self.folder / name, self._at(part_of(Path(name)).name))
            with remote.writing_to(self._at(JOURNAL)) as journal:
                journal.write_text(json.dumps(together), encoding="utf-8")
            for name in together:
                remote.rename_at(self._at(part_of(Path(name)).name), self._at(name))
            remote.remove_at(self._at(JOURNAL))
        for name in self._sent.keys() - stamps.keys():
            remote.remove_at(self._at(name))
        self._sent = stamps

    def _at(self, name: str) -> str:
        return remote.below(self.address, name)

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Time and size of each file, by its path in the folder."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        return {
            path.relative_to(self.folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in files
            if not is_leftover(path) and path.name != JOURNAL
        }


def fetch_run(address: str, folder: Path, names: Sequence[str] = ()) -> list[str]:
    """Copy a run folder to this machine.

    Args:
        address: of the run folder.
        folder: where to; created if missing.
        names: the files to copy; empty: all.

    Returns:
        The files that a process that died had uploaded whole, but not all renamed.

    Raises:
        UserError: it does not exist, or cannot be read.
    """
    base = address.rstrip("/")
    entries = remote.files_below(base)
    found = {entry.name: entry.address for entry in entries if ".." not in Path(entry.name).parts}
    left: list[str] = []
    if JOURNAL in found:
        left = _journal(found[JOURNAL])
    wanted = [*(names or found), *[part_of(Path(name)).name for name in left], *[JOURNAL] * bool(left)]
    for name in dict.fromkeys(wanted):
        path = folder / name
        if name not in found or (not left and (is_leftover(path) or name == JOURNAL)):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        remote.copy_from(found[name], path)
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    return left


def _journal(address: str) -> list[str]:
    try:
        names = parse_json(remote.read_address(address, 1 << 20))
    except ValueError:
        names = None
    if not isinstance(names, list) or any(name != Path(str(name)).name for name in names):
        raise UserError(f"'{address}' is damaged: remove it; files of the last upload may not fit together")
    return [str(name) for name in names]


@contextlib.contextmanager
def working_copy(address: str, *, resume: bool) -> Iterator[RemoteRun]:
    """Give a folder of this machine for a training whose run folder is at an address.

    It is removed at the end, unless it is the only complete copy.

    Args:
        address: of the run folder.
        resume: whether to continue a run that is there; otherwise the address must be empty.

    Raises:
        UserError: the run is missing, the address is not empty, or the file system refuses.
    """
    remote.check_address(address)
    if not resume:
        remote.check_new(address)
    run = RemoteRun(address, Path("runs") / f"{remote.address_name(address)}-{secrets.token_hex(4)}")
    try:
        if resume:
            run.fetch()
        with _named(run):
            yield run
    finally:
        if not run.failed:
            shutil.rmtree(run.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                run.folder.parent.rmdir()


@contextlib.contextmanager
def _named(run: RemoteRun) -> Iterator[None]:
    """Name the address in what is told instead of the folder of this machine, which is removed."""
    address = remote.without_secrets(run.address)
    with telling_as(str(run.folder), address):
        try:
            yield
        except (UserError, KeyboardInterrupt) as error:
            if run.failed:
                raise
            raise type(error)(told_as(str(error))) from None


@contextlib.contextmanager
def working_folder(
    out: str | Path | None, peers: Peers | None, *, resume: bool
) -> Iterator[tuple[Path | None, RemoteRun | None]]:
    """Give the folder that a training works in, and in the first process what uploads it.

    Args:
        out: what the user names: a folder, an address, or nothing; then the first process chooses it.
        peers: the processes of the training; None: this one alone.
        resume: whether a run is there.

    Raises:
        UserError: the address cannot be used.
    """
    address = as_address(out)
    if peers is None or peers.first:
        if address is None:
            yield None if out is None else Path(out), None
            return
        with working_copy(address, resume=resume) as run:
            yield run.folder, run
    elif address is None:
        given = peers.tell("out") if out is None and not resume else out
        yield None if given is None else Path(given), None
    else:
        folder = Path(peers.tell("out"))
        with tempfile.TemporaryDirectory(prefix="msefpn-") as own:
            if resume and not (folder / CONFIG).is_file():  # the first process is on another machine
                folder = Path(own) / folder.name
                fetch_run(address, folder, [CONFIG, DATA, METRICS, RESUME])
            yield folder, None


def local_run(address: str, *, whole: bool = False) -> Path:
    """A copy of a run at an address, or of a file of weights, that lasts as long as this process.

    Args:
        address: of the run folder or the file.
        whole: fetch all but the states, as a report needs it; otherwise what detecting needs.

    Raises:
        UserError: it does not exist, or cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="msefpn-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / (remote.address_name(address) or "run")
    say(f"reading {remote.without_secrets(address)}")
    if remote.kind_at(address) == "file":
        remote.copy_from(address, copy)
        return copy
    fetch_run(address, copy, _FOR_REPORTS if whole else [CONFIG, DATA, BEST])
    if not (copy / BEST).is_file():
        fetch_run(address, copy, [LAST])
    return copy
