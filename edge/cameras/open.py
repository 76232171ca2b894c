"""From what the user wrote after `--camera` to a camera."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edge.cameras.base import Camera
from edge.cameras.files import is_glob, open_folder, open_glob, open_image
from edge.cameras.opencv import VideoFile, open_device, open_stream
from edge.cameras.sim_camera import open_sim
from edge.cameras.v4l2 import open_v4l2
from edge.errors import CameraError
from edge.images import IMAGE_SUFFIXES

#: Suffixes, lower case, of the files that count as videos.  FFmpeg would also take a text file for one.
VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".h264", ".h265", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts"}
    | {".webm", ".wmv"}
)

_STREAM = re.compile(r"(rtsps?|rtmps?|https?|udp|tcp|rtp|srt)://", re.IGNORECASE)

ACCEPTED = (
    "a device number (0), a device that writes into the station's memory (v4l2:/dev/video0), a stream (rtsp://, "
    "http://, udp://…), a video file, an image file, a folder of images, a quoted glob ('parts/*.png'), or the "
    "simulated line (sim:, sim:seed=3,count=100)"
)


def is_live(spec: str) -> bool:
    """Return whether a text names a device or stream, which may not be there now and be there later."""
    return bool(re.fullmatch(r"[0-9]{1,3}", spec) or _STREAM.match(spec) or spec.startswith(("/dev/", "v4l2:")))


def open_camera(spec: str, *, name: str = "cam0") -> Camera:
    """Open the camera that a text names.

    Args:
        spec: a V4L2 device by number (`0`) or path (`/dev/video0`), read through OpenCV; `v4l2:` with a device and
            options, written straight into the slots (see `open_v4l2`); the URL of a stream; a video file; an image
            file; a folder, searched with its sub-folders; a glob; or `sim:` with options (see `open_sim`).
        name: the camera's name in events.

    Returns:
        The opened camera: devices, streams and a simulated line with a rate are live, files and a simulated line
        without one wait for the inspection and lose nothing.

    Raises:
        CameraError: there is no such thing, or it cannot be opened.
    """
    if spec == "sim" or spec.startswith("sim:"):
        return open_sim(name, spec[4:])
    if spec.startswith("v4l2:"):
        return open_v4l2(name, spec[5:])
    if re.fullmatch(r"[0-9]{1,3}", spec):
        return open_device(name, int(spec))
    if _STREAM.match(spec):
        return open_stream(name, spec)
    if spec.startswith("/dev/"):
        return open_device(name, spec)
    path = Path(spec)
    # Unlike `Path.exists`, also False for a name that no file system can hold.
    if not spec or not os.path.exists(spec):
        if is_glob(spec):
            return open_glob(name, spec)
        raise CameraError(f"no camera '{spec}': no such file or folder", f"accepted: {ACCEPTED}")
    if path.is_dir():
        return open_folder(name, path)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return open_image(name, path)
    if suffix in VIDEO_SUFFIXES:
        return VideoFile(name, path)
    raise CameraError(f"'{spec}' is neither an image nor a video", f"accepted: {ACCEPTED}")
