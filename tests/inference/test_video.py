"""Videos: turned and mirrored as the file says, shown when it says; and what a folder's finder leaves out."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from msefpn.errors import UserError
from msefpn.inference.frames import Frame, ReadFailure
from msefpn.inference.sources import describe_left_out, find_sources, read_frames
from msefpn.inference.video import VideoFile

# a, b, c, d of the display matrix (ISO/IEC 14496-12, 8.3.2):
# column' = a column + c row, row' = b column + d row
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "quarter turn": (0, 1, -1, 0),
    "half turn": (-1, 0, 0, -1),
    "three quarters": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}
HEIGHT, WIDTH = 48, 64


def write_with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Write a video of one picture with a red upper left corner, then the matrix into its track's header."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:16, :24] = (255, 0, 0)
    video = VideoFile(path, (HEIGHT, WIDTH), 10)
    for _ in range(2):
        video.add(pixels)
    video.close()
    content = bytearray(path.read_bytes())
    start = (
        content.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    )  # version 0: times, ids and duration; layer and volume
    a, b, c, d = (number << 16 for number in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return pixels


@pytest.mark.parametrize("name", MATRICES)
def test_a_video_is_turned_and_mirrored(name: str, tmp_path: Path) -> None:
    a, b, c, d = MATRICES[name]
    pixels = write_with_matrix(tmp_path / "x.mp4", MATRICES[name])
    # every pixel moved by the matrix, then shifted to begin at 0
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    across, down = a * columns + c * rows, b * columns + d * rows
    across, down = across - across.min(), down - down.min()
    wanted = np.zeros((down.max() + 1, across.max() + 1, 3), np.uint8)
    wanted[down, across] = pixels
    frame = next(read_frames(find_sources(tmp_path / "x.mp4"), stride=1, limit=None))
    assert isinstance(frame, Frame)
    assert frame.pixels.shape == wanted.shape
    assert np.abs(frame.pixels.astype(int) - wanted).mean() < 8


def test_frames_keep_their_times(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 0.54, 2.0]
    video = VideoFile(tmp_path / "x.mp4", (HEIGHT, WIDTH), 25)
    for number, time in enumerate(times):
        video.add(np.full((HEIGHT, WIDTH, 3), 50 * number, np.uint8), 7 + time)  # it begins at 0 all the same
    video.close()
    frames = list(read_frames(find_sources(tmp_path / "x.mp4"), stride=1, limit=None))
    assert [frame.time for frame in frames if isinstance(frame, Frame)] == pytest.approx(times, abs=1e-3)


def test_without_times_frames_come_at_the_rate(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "x.mp4", (HEIGHT, WIDTH), 10)
    for _ in range(4):
        video.add(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    video.close()
    with av.open(str(tmp_path / "x.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)


def test_a_folder_names_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pages = [Image.new("RGB", (20, 20), (60 * n, 0, 0)) for n in range(4)]
    pages[0].save(tmp_path / "set/a.gif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.array([[0, 4095]], np.uint16)).save(tmp_path / "set/b.png")
    for name in ("set/c.heic", "set/d.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (tmp_path / "set/again").symlink_to(tmp_path / "set")
    sources = find_sources(tmp_path / "link")
    assert [Path(source.name).name for source in sources] == ["a.gif", "b.png", "c.heic"]
    found = list(read_frames(sources, stride=1, limit=None))
    told = [item.told.split(": ")[-1] for item in found if isinstance(item, Frame)]
    assert told == ["4 frames, the first is taken", "16-bit values, scaled from 12 bits"]
    assert isinstance(found[2], ReadFailure)
    assert "c.heic" in found[2].text
    assert describe_left_out([tmp_path / "link"]).startswith("1 video in folders left out (")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/x.HEIC").touch()
    with pytest.raises(UserError, match=r"convert its 1 pictures, such as 'x\.HEIC'"):
        find_sources(tmp_path / "raw")
