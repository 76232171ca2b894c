"""Several stations in one process: a thread for each camera, so that none waits for another."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from edge.errors import CudaError
from edge.station import Station


class Line:
    """Runs stations side by side until all have ended.

    Args:
        stations: at least one; each keeps its own slots, numbers and summary.
    """

    def __init__(self, stations: Sequence[Station]) -> None:
        self.stations = tuple(stations)
        self._errors: list[BaseException] = []
        self._ended = threading.Semaphore(0)

    def run(self) -> None:
        """Run all; a station that ends with an error leaves the others running, unless the GPU has failed.

        Raises:
            Exception: the first that ended a station, once all have ended.
        """
        if len(self.stations) == 1:
            self.stations[0].run()
            return
        threads = [
            threading.Thread(target=self._run, args=(station,), name=f"inspect-{station.name}", daemon=True)
            for station in self.stations
        ]
        for thread in threads:
            thread.start()
        for _ in threads:
            # Not `join`: on some platforms signal handlers would wait for its end.
            self._ended.acquire()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def stop(self) -> None:
        """End all in order.  May be called from any thread or signal handler."""
        for station in self.stations:
            station.stop()

    def _run(self, station: Station) -> None:
        try:
            station.run()
        except BaseException as error:  # noqa: BLE001  `run` raises it
            self._errors.append(error)
            if isinstance(error, CudaError):
                # A failed GPU is everybody's, and only a new process gets it back.
                self.stop()
        finally:
            self._ended.release()
