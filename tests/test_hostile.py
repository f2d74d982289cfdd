"""Hostile files of every format that SECURITY.md lists: one line says what is wrong, and nothing is run."""

import contextlib
import json
import os
import pickle
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from msefpn.checkpoint import KEY, write_info
from msefpn.cli import main
from msefpn.config import Config
from msefpn.data.archive import unpacked
from msefpn.data.images import ImageFault, read_header, read_image
from msefpn.errors import UserError
from msefpn.inference import download
from msefpn.inference.frames import InputSource, ReadFailure
from msefpn.inference.sources import find_sources, read_frames
from msefpn.models import load
from tests import ROOT, copy_to


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that fails; no control character is in it."""
    assert main(list(map(str, arguments))) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert line[:-1].isprintable()
    return line


def png(path: Path, width: int, height: int, pixels: bytes = b"", depth: int = 1) -> Path:
    """A PNG file with a header, and this behind it as pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )
    return path


def test_checkpoints_run_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "run"
    for name in ("a.pkl", "a.pth", "a.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil(mark)))
        one_line(capsys, "predict", tmp_path / name, ROOT / "docs" / "images")
    assert not mark.exists()


def weights(path: Path, **changes: Any) -> Path:
    """A file of weights whose description is changed."""
    info = {**write_info(Config(), ["a", "b"], [1, 2]), **changes}
    save_file({"x": torch.zeros(1)}, path, metadata={KEY: json.dumps(info)})
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"category_ids": [1]}, "has 2 classes and 1 category ids"),
        ({"category_ids": ["1", "2"]}, "'category_ids', not a list of different whole numbers"),
        ({"category_ids": [1, 10**30]}, "'category_ids', not a list of different whole numbers"),
        ({"classes": ["a", "a"]}, "has a value twice in 'classes'"),
        ({"classes": "ab"}, "has 'ab' as 'classes', not a list of texts"),
        ({"classes": ["a", "\ud800"]}, "not Unicode at classes"),
        ({"version": "2"}, "has '2' as 'version'"),
        ({"config": json.loads('{"a":' * 70 + "1" + "}" * 70)}, "nested more than 64 deep"),
        ({"config": vars(Config()) | {"neck_options": {"out_channels": 10**9}}}, "describes|does not fit"),
        ({"config": vars(Config()) | {"detector_options": {"roi": {"hidden": 10**9}}}}, "does not fit"),
        (
            {"config": vars(Config()) | {"detector_options": {"rpn": {"proposals": "ab"}}}},
            r"proposals is 'ab', but must be of type tuple\[int, int\]",
        ),
        ({"config": vars(Config()) | {"backbone": "../x"}}, "unknown backbone"),
        (
            {"config": vars(Config()) | {"backbone_options": {"frozen_stages": "2"}}},
            "frozen_stages is '2', but",
        ),
        (
            {"config": vars(Config()) | {"backbone_options": {"train_norm": "no"}}},
            "train_norm is 'no', but must",
        ),
        ({"config": {"lr": {}}}, "lr is {}, but must be of type float"),
    ],
)
def test_a_description_of_weights_is_not_believed(changes: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        load(weights(tmp_path / "w.safetensors", **changes))


@pytest.mark.parametrize("length", [12 << 40, (1 << 64) - 1, 100])
def test_a_header_of_safetensors_is_not_believed(length: int, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(UserError, match="is broken or half-written"):
        load(file)
    header = json.dumps(
        {"a": {"dtype": "F32", "shape": [10**12, 3], "data_offsets": [0, 12 * 10**12]}}
    ).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError):
        load(file)


def test_pictures_that_unfold(tmp_path: Path) -> None:
    before = time.process_time()
    for file, says in {
        png(tmp_path / "a.png", 7000, 7000): "bytes cannot hold its 49 million pixels",
        png(tmp_path / "b.png", 12_000, 12_000, bytes(1501 * 12_000)): "144 million pixels, the limit is 100",
        png(tmp_path / "c.png", 60_000, 60_000): "3600 million pixels, the limit is 100 million",
    }.items():
        for read in (read_image, read_header):
            with pytest.raises(ImageFault, match=says):
                read(file)
    Image.new("RGB", (64, 64)).save(tmp_path / "d.jpg", progressive=True)
    content = (tmp_path / "d.jpg").read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "d.jpg").write_bytes(content[:-2] + 200 * last + content[-2:])
    with pytest.raises(ImageFault, match="more than 100 scans"):
        read_image(tmp_path / "d.jpg")
    assert time.process_time() - before < 2


def test_only_pictures_are_decoded(tmp_path: Path) -> None:
    """Pillow would give a PostScript file to Ghostscript."""
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ImageFault, match="no image format that can be read"):
        read_image(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").symlink_to("/dev/zero")
    for name in ("b.jpg", "c.jpg"):
        with pytest.raises(ImageFault, match="is not a regular file"):
            read_image(tmp_path / name)
        with pytest.raises(ImageFault, match="is not a regular file"):
            read_header(tmp_path / name)


def frames_of(path: Path) -> list[Any]:
    return list(read_frames([InputSource("video", str(path))], stride=1, limit=9))


def test_videos_lead_to_no_other_file(tmp_path: Path) -> None:
    pytest.importorskip("av")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, text in {
        "list.mp4": "#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        "concat.mp4": "ffconcat version 1.0\nfile '/etc/hostname'\n",
    }.items():
        (tmp_path / name).write_text(text)
    for path in sorted(tmp_path.iterdir()):
        (failure,) = frames_of(path)
        assert isinstance(failure, ReadFailure)
        assert "not a video that can be read" in failure.text


def test_damaged_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from msefpn.inference.video import VideoFile, count_video  # noqa: PLC0415  (of an extra)

    video = VideoFile(tmp_path / "a.mp4", (32, 32), 10)
    for shade in range(4):
        video.add(np.full((32, 32, 3), 60 * shade, np.uint8))
    video.close()
    sound = (tmp_path / "a.mp4").read_bytes()
    random, start = np.random.default_rng(0), sound.index(b"moov")
    for _ in range(40):
        spoilt = bytearray(sound)
        for place in random.integers(start, len(sound), 4):
            spoilt[place] = int(random.integers(0, 256))
        (tmp_path / "b.mp4").write_bytes(spoilt)
        assert (count_video(str(tmp_path / "b.mp4")) or 0) >= 0
        assert frames_of(tmp_path / "b.mp4")


def serve(answer: Callable[[socket.socket], None]) -> str:
    """The address of a server that answers once, in this way."""
    server = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with server, server.accept()[0] as client:
            client.recv(4096)
            with contextlib.suppress(OSError):
                answer(client)

    threading.Thread(target=run, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/a.jpg"


def drip(head: bytes) -> Callable[[socket.socket], None]:
    def answer(client: socket.socket) -> None:
        client.sendall(head)
        for _ in range(100):
            client.sendall(b"x")
            time.sleep(0.05)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
SLOW = "has not sent the whole file in 1 second"


def sends(text: bytes) -> Callable[[socket.socket], None]:
    return lambda client: client.sendall(text)


def leads_to(address: bytes) -> Callable[[socket.socket], None]:
    return sends(b"HTTP/1.1 302 x\r\nLocation: " + address + b"\r\n\r\n")


ANSWERS: dict[str, tuple[Callable[[socket.socket], None], str]] = {
    "headers drip": (drip(OK), SLOW),
    "body drips": (drip(OK + b"Content-Length: 99999\r\n\r\n"), SLOW),
    "silent": (lambda client: time.sleep(3), SLOW),
    "to a file": (leads_to(b"file:///etc/hostname"), "not allowed"),
    "to ftp": (leads_to(b"ftp://a/b"), "neither http nor https"),
    "no address": (leads_to(b"http://[::1"), "cannot be read"),
    "huge": (sends(OK + b"Content-Length: 99999999999\r\n\r\n"), "the limit is 1024 MB"),
    "escapes": (sends(b"HTTP/1.1 404 \x1b[31mno\r\n\r\n"), "answers 404 "),
    "noise": (sends(b"\xff\x00\x07\r\n"), "cannot be read"),
    "nothing": (sends(b""), "broke"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_hostile_servers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_SECONDS", 1.0)
    answer, says = ANSWERS[name]
    before = time.monotonic()
    with pytest.raises(ImageFault, match=says):
        download.download(serve(answer), tmp_path)
    assert time.monotonic() - before < 30


@pytest.mark.parametrize(
    "name", ["http://[::1", "http://", "https:///x", "ftp://a/b", "file:///none/x.jpg", "x" * 5000, "a\0b"]
)
def test_addresses_that_are_none(name: str) -> None:
    with pytest.raises(UserError, match=r"is not an address|cannot be|no image found"):
        find_sources(name)


def linked(folder: Path, tiny_set: Path) -> Path:
    """A copy of the data set with one picture that is a link to a file outside."""
    copy_to(tiny_set, folder / "set")
    picture = next(iter(sorted((folder / "set/val").iterdir())))
    picture.rename(folder / "private.jpg")
    picture.symlink_to(folder / "private.jpg")
    return folder / "set"


def test_links_that_lead_out(tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = linked(tmp_path, tiny_set)
    out = tmp_path / "out"
    for arguments in (
        ("check", data),
        ("check", "--train-json", data / "train.json", "--val-json", data / "val.json"),
        ("convert", data, "--out", out),
        ("split", data, "--out", out),
        ("train", "--data", data, "--out", out, "--init", "none"),
    ):
        assert "is a link that leads out of" in one_line(capsys, *arguments)
    with pytest.raises(UserError, match="is a link that leads out of"):
        find_sources(data / "val")
    assert not out.exists()
    assert len(find_sources(data / "val", follow_links=True)) == 5
    assert main(["convert", str(data), "--out", str(out), "--follow-links"]) == 0
    assert main(["check", str(out)]) == 0  # the images were copied, not linked
    (data / "again").symlink_to(data / "val")
    (data / "val" / "second.jpg").symlink_to(next(iter(sorted((data / "train").iterdir()))))
    next(iter(sorted((data / "val").iterdir()))).unlink()
    copy_to(tmp_path / "private.jpg", data / "val" / "x.jpg")
    assert main(["check", str(data)]) in (0, 2)  # links that stay inside are followed
    assert "leads out" not in "".join(capsys.readouterr())


def test_a_yaml_of_yolo_leads_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "set").mkdir()
    for place in (tmp_path / "private", "/dev/zero"):
        (tmp_path / "set/data.yaml").write_text(f"names: [a]\ntrain: {place}\n")
        for verb in ("check", "convert"):
            assert "which is outside of" in one_line(capsys, verb, tmp_path / "set")


def test_zip_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(11):
            archive.writestr(f"{number}", "")
    content = (tmp_path / "bomb.zip").read_bytes()
    spoilt = bytearray(content)
    place = content.index(b"PK\x01\x02")
    spoilt[place + 24 : place + 28] = struct.pack("<I", 4_000_000_000)  # what it says of its size
    (tmp_path / "bomb.zip").write_bytes(spoilt)
    with pytest.raises(UserError, match=r"unpacks to 11 files of 4\.0 GB"), unpacked(tmp_path / "bomb.zip"):
        pass
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("../../out.txt", "x")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with unpacked(tmp_path / "out.zip") as folder:
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert not (folder / "../../out.txt").exists()
    sound = (tmp_path / "out.zip").read_bytes()
    for place in range(0, len(sound), 9):
        spoilt = bytearray(sound)
        spoilt[place] ^= 0xFF
        (tmp_path / "b.zip").write_bytes(spoilt)
        try:
            with unpacked(tmp_path / "b.zip"):
                pass
        except UserError as error:
            assert "cannot be unpacked" in str(error)  # noqa: PT017  it may be sound
