"""Recording of a stream's work into a graph, asked of the driver through ctypes: PyCUDA has no call for it.

Addresses and handles are PyCUDA's own: both speak to the same driver and the same context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from edge.cuda_driver import LIBRARY, DriverError, call
from edge.errors import CudaError

#: `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: what other threads do meanwhile neither spoils the recording nor is forbidden.
_THREAD_LOCAL = ctypes.c_int(1)


class DriverGraphs:
    """The driver's calls for graphs; all are made with the context current.

    Raises:
        CudaError: the driver's library cannot be loaded.
    """

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError as error:
            raise CudaError(f"{library} cannot be loaded: {error}") from error

    def set_current(self, context: int) -> None:
        """Let the calling thread use this context from now on."""
        self._call("cuCtxSetCurrent", ctypes.c_void_p(context))

    def pop(self) -> None:
        """Take the context that was made current last off the calling thread's stack."""
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Return the handle of what `work` queues on the stream, ready to be launched.

        Raises:
            CudaError: the driver refuses it; what `work` itself raises comes through as it is.
        """
        on, graph, ready = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", on, _THREAD_LOCAL)
        try:
            try:
                work()
            except BaseException:
                # The stream must not stay in this state; that its work is incomplete matters no more.
                self._cuda.cuStreamEndCapture(on, ctypes.byref(graph))
                raise
            self._call("cuStreamEndCapture", on, ctypes.byref(graph))
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            if graph.value:
                self._cuda.cuGraphDestroy(graph)
        if not ready.value:
            raise CudaError("cuGraphInstantiateWithFlags gave no graph")
        return ready.value

    def launch(self, graph: int, stream: int) -> None:
        """Queue all of a graph's work."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def free(self, graph: int) -> None:
        """Destroy it."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _call(self, function: str, *arguments: object) -> None:
        try:
            call(self._cuda, function, *arguments)
        except DriverError as error:
            raise CudaError(str(error)) from error
