"""One tree of errors.  Each names what is wrong (the file, the value) and the next step, and fixes an exit code.

EdgeError                        1   anything of ours not listed below
├── UsageError                   2   arguments that make no sense together (argparse also exits with 2)
├── BundleError                  3   a bundle that is missing, truncated, corrupted or foreign
│   ├── BundleVersionError       3   written by a newer release
│   └── BundleMismatchError      3   whole, but not for this use: input size, engine, missing calibration
├── CameraError                  4   a camera that cannot be opened, or is lost
│   └── FrameError               4   one bad frame: becomes a `fault` verdict, the line goes on
├── PublishError                 5   an endpoint that cannot be bound or connected
├── RuntimeUnavailableError      6   the asked-for runtime is not on this machine
│   └── CudaError                6   the GPU or its driver refused or failed
├── DataError                    7   a data set or image folder that cannot be used
├── CalibrationError             8   a request that the good images cannot support
├── GoldenError                  9   the bundle's golden frames do not score as recorded
├── TrainingError               10   a run that cannot start, resume or continue
├── KeysError                   11   keys that are missing, malformed, or open to others
├── JournalError                12   a journal or cursor that cannot be used, or is another's
└── BridgeError                 13   a PLC's side of the bridge that cannot be opened

70 = an internal error (a bug: the traceback goes to a file, whose name is printed)
130 = interrupted by Ctrl-C, 143 = ended by SIGTERM, where the command has nothing to finish
"""

from __future__ import annotations

from typing import ClassVar

EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


class EdgeError(Exception):
    """Base of every error that a user may meet.

    Args:
        problem: what is wrong, in one line, with the file or value by name.
        hint: the next step, in one line; empty where the problem says it all.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem} ({self.hint})" if self.hint else self.problem


class UsageError(EdgeError):
    """Arguments that make no sense together."""

    exit_code = 2


class BundleError(EdgeError):
    """A bundle that is missing, truncated, corrupted or foreign."""

    exit_code = 3


class BundleVersionError(BundleError):
    """A bundle written by a newer release."""


class BundleMismatchError(BundleError):
    """A whole bundle that does not fit this use."""


class CameraError(EdgeError):
    """A camera that cannot be opened, or is lost."""

    exit_code = 4


class FrameError(CameraError):
    """One bad frame: it becomes a `fault` verdict and the line goes on."""


class PublishError(EdgeError):
    """An endpoint that cannot be bound or connected."""

    exit_code = 5


class RuntimeUnavailableError(EdgeError):
    """The asked-for runtime is not on this machine."""

    exit_code = 6


class CudaError(RuntimeUnavailableError):
    """The GPU or its driver refused or failed."""


class DataError(EdgeError):
    """A data set or image folder that cannot be used."""

    exit_code = 7


class CalibrationError(EdgeError):
    """A request that the good images cannot support."""

    exit_code = 8


class GoldenError(EdgeError):
    """The bundle's golden frames do not score as recorded."""

    exit_code = 9


class TrainingError(EdgeError):
    """A run that cannot start, resume or continue."""

    exit_code = 10


class KeysError(EdgeError):
    """Keys that are missing, malformed, or open to others; never quotes what a secret file holds."""

    exit_code = 11


class JournalError(EdgeError):
    """A journal or cursor that cannot be used, or is in use by another process."""

    exit_code = 12


class BridgeError(EdgeError):
    """A PLC's side of the bridge that cannot be opened: names the address, register or node."""

    exit_code = 13
