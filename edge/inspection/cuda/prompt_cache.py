"""The prompt bank for a GPU: the entries used last in device memory, the others where the device reaches them.

An entry is all of its features one after the other, float16, each at a multiple of `_ALIGNMENT` numbers; the core's
prompt inputs lie in the same order, float32.  A table on the device says where each entry is, so that choosing and
reading one needs nothing from the host: a miss reads over the bus, in the same graph as a hit.

After the frame the host may promote the entry that was missed, one at a time:

    frames' stream   … frame │ table[evicted] := host, A                    … │ wait B, table[entry] := device, …
    own stream               │                         wait A, copy entry, B  │

Between A and B nothing reads the place that is copied to, and the switch waits behind a frame, never before one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.errors import RuntimeUnavailableError
from edge.frames import F32, U8
from edge.inspection.cuda.device import Gpu, HostMemory, Stream
from edge.inspection.cuda.residency import Move, Residency
from edge.inspection.runtime import CacheReport, Traffic

#: Device memory for prompt features, in bytes: a few hundred entries of a usual model, and little on any device.
PROMPT_BYTES = 256 << 20

# Numbers between which features begin: 256 bytes of float16, as networks want their inputs aligned.
_ALIGNMENT = 128
_POINTER_BYTES = 8


class PromptCache:
    """One model's prompt bank on the device.

    Args:
        gpu: the device.
        descriptors: float32 `(K, D)`.
        features: each prompt feature's entries, `(K, *shape)`, float32 or float16.
        budget: bytes of device memory that their features may take.
        stream: of the frames.

    Attributes:
        entries: K.
        size: numbers of one entry, padding included.
        offsets: at which number of an entry each feature begins.
        descriptors: where they lie on the device.
        table: where the entries' addresses lie on the device, `uint64[K]`.
        traffic: what promotions have copied.

    Raises:
        RuntimeUnavailableError: a feature is beyond float16.
    """

    def __init__(
        self,
        gpu: Gpu,
        descriptors: F32,
        features: Mapping[str, NDArray[np.floating]],
        budget: int,
        stream: Stream,
    ) -> None:
        self._gpu, self._stream, self._own_stream = gpu, stream, gpu.stream()
        self._vacated, self._arrived = gpu.event(), gpu.event()
        self.entries = len(descriptors)
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, values in features.items():
            self.offsets[name] = self.size
            self.size += -(-math.prod(values.shape[1:]) // _ALIGNMENT) * _ALIGNMENT
        self._entry_bytes = 2 * self.size
        places = min(self.entries, max(budget, 0) // self._entry_bytes)
        self.residency = Residency(self.entries, places)
        self.traffic = Traffic()
        staging = gpu.pin(max(descriptors.nbytes, self._entry_bytes))
        self._descriptors = gpu.allocate(descriptors.nbytes)
        staging.array[: descriptors.nbytes] = np.ascontiguousarray(descriptors).reshape(-1).view(np.uint8)
        gpu.copy_in(self._descriptors.address, staging.address, descriptors.nbytes, stream)
        stream.synchronize()
        self.descriptors = self._descriptors.address

        self._device = gpu.allocate(places * self._entry_bytes) if places else None
        # A bank that fits whole is not kept twice.
        self._host = gpu.map(self.entries * self._entry_bytes) if places < self.entries else None
        for entry in range(self.entries):
            self._load(entry, features, staging)
        self._places = (
            [self._device.address + place * self._entry_bytes for place in range(places)]
            if places and self._device
            else []
        )
        # Where each entry lies on the host and each place on the device: never changed, so that a copy from here may
        # wait for as long as it likes.
        there = 0 if self._host is None or self._host.device_address is None else self._host.device_address
        hosts = [there + entry * self._entry_bytes for entry in range(self.entries)] if there else self._places
        self._pointers = gpu.pin(_POINTER_BYTES * (self.entries + places))
        pointers = self._pointers.array.view(np.uint64)
        pointers[: self.entries] = hosts
        pointers[self.entries :] = self._places
        self._table = gpu.allocate(_POINTER_BYTES * self.entries)
        self.table = self._table.address
        if self._host is not None:
            gpu.copy_in(self.table, self._pointers.address, _POINTER_BYTES * self.entries, stream)
        if places:
            source = self._pointers.address + _POINTER_BYTES * self.entries
            gpu.copy_in(self.table, source, _POINTER_BYTES * places, stream)
        stream.synchronize()

    def use(self, prompts: Sequence[int]) -> None:
        """Take note of the entries that a finished frame used, and queue what follows from it.

        The caller sees to it that nobody else queues on the frames' stream meanwhile.
        """
        moving = self.residency.moving
        for prompt in prompts:
            move = self.residency.use(prompt)
            if move is not None:
                self._begin(move)
        if moving is not None:
            # Only now: this frame did not find it on the device yet.
            self._finish()

    def settle(self) -> None:
        """Wait until no entry is being copied."""
        self._own_stream.synchronize()

    @property
    def report(self) -> CacheReport:
        """How often the device had what a frame needed, and what lies there."""
        counts = self.residency
        return CacheReport(
            counts.hits,
            counts.misses,
            promotions=counts.promotions,
            bytes=counts.count * self._entry_bytes,
        )

    def _begin(self, move: Move) -> None:
        gpu, host = self._gpu, self._host
        assert host is not None
        self._point(move.evicted, move.evicted)
        self._vacated.record(self._stream)
        self._own_stream.wait(self._vacated)
        source = host.address + move.entry * self._entry_bytes
        gpu.copy_in(self._places[move.place], source, self._entry_bytes, self._own_stream)
        self._arrived.record(self._own_stream)
        self.traffic += Traffic.of(self._entry_bytes)

    def _finish(self) -> None:
        move = self.residency.finish()
        self._stream.wait(self._arrived)
        self._point(move.entry, self.entries + move.place)

    def _point(self, entry: int, pointer: int) -> None:
        """Queue: the table's `entry` becomes the pointer kept at this index."""
        target = self.table + _POINTER_BYTES * entry
        self.traffic += Traffic.of(_POINTER_BYTES)
        self._gpu.copy_in(target, self._pointers.address + _POINTER_BYTES * pointer, _POINTER_BYTES, self._stream)

    def _load(self, entry: int, features: Mapping[str, NDArray[np.floating]], staging: HostMemory) -> None:
        """Put one entry where it belongs at the start."""
        size = self._entry_bytes
        if self._host is not None:
            self._narrow(self._host.array[entry * size : (entry + 1) * size], entry, features)
            source = self._host.address + entry * size
        else:
            self._narrow(staging.array[:size], entry, features)
            source = staging.address
        if self._device is not None and entry in self.residency.resident:
            self._gpu.copy_in(self._device.address + entry * size, source, size, self._stream)
            self._stream.synchronize()

    def _narrow(self, target: U8, entry: int, features: Mapping[str, NDArray[np.floating]]) -> None:
        halves = target.view(np.float16)
        for name, values in features.items():
            values = values[entry].reshape(-1)
            with np.errstate(over="ignore"):
                part = values.astype(np.float16)
            if not np.array_equal(np.isfinite(part), np.isfinite(values)):
                raise RuntimeUnavailableError(
                    f"prompt feature {name} has values beyond float16, in which a GPU keeps them",
                    "use --runtime portable",
                )
            halves[self.offsets[name] : self.offsets[name] + part.size] = part
