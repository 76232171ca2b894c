"""A camera that could not be opened yet: the station reports it and tries again, as for one that was lost."""

from __future__ import annotations

from edge.cameras.base import Camera
from edge.errors import CameraError
from edge.frames import Slot


class LostCamera(Camera):
    """Has no frames, only the reason.

    Args:
        name: the camera's name.
        error: why it could not be opened.
    """

    def __init__(self, name: str, error: CameraError) -> None:
        super().__init__(name, live=True)
        self._error = error

    def capture(self, slot: Slot, timeout_s: float) -> bool:
        """Tell the reason."""
        raise CameraError(self._error.problem, self._error.hint)
