"""Videos and cameras by FFmpeg: reading frames and writing a video. Needs the extra `video`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from msefpn.data.images import ImageFault, check_size
from msefpn.inference.frames import Frame, InputSource, ReadFailure
from msefpn.reading import open_file

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,gif,h264,hevc"
"""FFmpeg's names of the containers that are read."""
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}
"""By `sys.platform`: FFmpeg's name for the system's cameras, and for one of them."""
_TICK = Fraction(1, 90_000)
"""Second in which written videos count: divides all usual frame rates."""
_MISSING = 0.02
"""Share of a video's frames that may be missing at its end without a message: the counts are estimates."""


def count_video(path: str) -> int | None:
    """Return the number of frames that a video file states, 0 where it states none; None: cannot be read."""
    try:
        with _open(InputSource("video", path)) as container:
            return max(0, int(container.streams.video[0].frames))
    except Exception:  # decoding it will say what is wrong
        return None


def decode_video(
    index: int, source: InputSource, name: str, stride: int, limit: int | None
) -> Generator[Frame | ReadFailure]:
    """Decode a video file or camera; a failure ends its frames.

    Args:
        index: of the source.
        source: a video file or a camera.
        name: of the source in messages.
        stride: every how many frames one is taken.
        limit: the most frames that are taken; None: all.
    """
    seen = taken = stated = 0
    length = end = 0.0  # seconds
    try:
        with _open(source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stated = stream.frames
            rate = _rate(stream) / stride
            length = _seconds(container, stream)
            for frame in container.decode(stream):
                check_size(frame.width, frame.height)  # it may change on the way
                end = frame.time or 0.0
                if seen % stride == 0:
                    yield Frame(index, _upright(frame), seen, rate, frame.time)
                    taken += 1
                    if taken == limit:
                        return
                seen += 1
    except Exception as error:  # damaged files lead decoders and what wraps them anywhere
        reason = _in_one_line(error)
        if not seen:
            yield ReadFailure(index, f"{name}: {reason}")
            return
        yield ReadFailure(index, f"{name} breaks off after {_frames(seen, stated)}: {reason}", partly=True)
        return
    if not seen:
        yield ReadFailure(index, f"{name}: no frame can be read")
    elif _is_short(seen, stated) if stated else _is_short(end, length):
        yield ReadFailure(index, f"{name} breaks off after {_frames(seen, stated)}", partly=True)


def _open(source: InputSource) -> Any:
    """The container of a video or camera, its first video stream readable. Raises ImageFault, OSError."""
    place, form = source.name, None
    if source.kind == "camera":
        device = source.name.rpartition(":")[2]
        if sys.platform not in _CAMERAS:
            raise ImageFault(f"cameras cannot be read on {sys.platform}: give a video file")
        form, place = _CAMERAS[sys.platform][0], _CAMERAS[sys.platform][1].format(device)
    # Else a playlist named .mp4 would make FFmpeg read other files, or addresses.
    options = {} if form else {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        if form is None:
            open_file(place).close()
            place = os.path.abspath(place)  # no name of a protocol
        container = av.open(place, format=form, options=options, metadata_errors="replace")
    except OSError as error:  # FFmpegError is none, but its subclasses for files are
        what = "camera" if form else "video"
        raise ImageFault(f"not a {what} that can be read ({error.strerror or error})") from None
    except FFmpegError as error:
        what = "camera" if form else "video"
        raise ImageFault(f"not a {what} that can be read ({error.strerror or error})") from None
    if not container.streams.video:
        container.close()
        raise ImageFault("has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        container.close()
        raise ImageFault("its codec is unknown: convert it, such as to H.264")
    try:
        check_size(stream.width, stream.height)
    except ImageFault:
        container.close()
        raise
    return container


def _rate(stream: Any) -> float:
    """Frames per second as the file states them, where that can be."""
    rate = float(stream.average_rate or 25)
    return rate if 0.001 <= rate <= 1000 else 25.0


def _is_short(there: float, stated: float) -> bool:
    """Whether much less of a video is there, in frames or seconds, than its file states."""
    return stated - there > max(2.0, _MISSING * stated)


def _seconds(container: Any, stream: Any) -> float:
    """The length of a video stream as the file states it; 0 if it does not."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if tag := re.match(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])  # Matroska's
    alone = container.duration is not None and len(container.streams) == 1
    return float(container.duration / av.time_base) if alone else 0.0


def _upright(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) RGB, turned and mirrored as the file says: phones store them lying, or as in a mirror.

    The display matrix (ISO/IEC 14496-12, 8.3.2) maps column and row: column' = a column + c row and
    row' = b column + d row. One that is not a multiple of a quarter turn is ignored.
    """
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if b == c == 0 and a and d:
        across, down = a, d
    elif a == d == 0 and b and c:
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    else:
        return pixels
    return np.ascontiguousarray(pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])


def _frames(seen: int, stated: int) -> str:
    return f"{seen}{f' of {stated}' if stated else ''} frames"


def _in_one_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()) or type(error).__name__


class VideoFile:
    """An H.264 file that is written frame by frame; frames of another size than the first are resized to it.

    Args:
        path: the file.
        size: height and width of the frames, pixels.
        rate: frames per second, where the frames do not say when they are shown.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        self.container = av.open(str(path), "w")
        self.rate = rate
        self.stream = self.container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        self.stream.height, self.stream.width = (side + side % 2 for side in size)  # 4:2:0 needs even sides
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = _TICK
        self._first: float | None = None
        self._last = -1
        """Ticks of the last frame."""

    def add(self, pixels: NDArray[np.uint8], time: float | None = None) -> None:
        """Write a frame (H, W, 3) RGB that is shown at a time, seconds; None: at the rate after the last."""
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        fitted = frame.reformat(width=self.stream.width, height=self.stream.height)
        step = round(1 / self.rate / _TICK)
        if time is None:
            ticks = self._last + step if self._last >= 0 else 0
        else:
            self._first = time if self._first is None else self._first
            ticks = round((time - self._first) / _TICK)
        self._last = max(ticks, self._last + 1)  # times must rise
        fitted.pts, fitted.time_base = self._last, _TICK
        self.container.mux(self.stream.encode(fitted))

    def close(self) -> None:
        """Write what is left and end the file."""
        self.container.mux(self.stream.encode())
        self.container.close()
