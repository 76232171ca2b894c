"""What of one frame slot lies on the device: its pixels, its results, and the work recorded for them.

An integrated device shares the processor's memory: what it maps is read and written in place, and nothing is copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge.frames import F32, U8, FrameMeta, Slot
from edge.inspection.cuda.device import DeviceMemory, Gpu, Graph, HostMemory, Stream
from edge.inspection.cuda.plan import FrameTables, Results

_WORD = 4
#: Where the results after the mask begin, from one to the next.
_ALIGNMENT = 64


class Part(NamedTuple):
    """The work of one stage of one tile, recorded by itself so that it can be timed."""

    stage: str
    graph: Graph


@dataclass(frozen=True)
class Recorded:
    """The work for one kind of frame in one slot, recorded once.

    Attributes:
        key: frame shape, format, what is corrected, pixel threshold and addresses: all that the work depends on.
        whole: all of it as one graph.
        tables: which it reads.
        shares: each stage's part of the device's time, adding up to 1.
        parts: the same work in parts, where each frame is timed.
    """

    key: tuple[object, ...]
    whole: Graph
    tables: FrameTables
    shares: dict[str, float]
    parts: tuple[Part, ...] = ()


class Seat:
    """One slot's memory; the slot is its own.

    Args:
        gpu: the device.
        owner: the runtime whose frames it is for.
        map_shape: of the anomaly map.
        tiles: of a frame.

    Attributes:
        uploaded: recorded after each upload.
        staged: the frame that an upload has been queued for and `run` has not taken up.
    """

    def __init__(self, gpu: Gpu, owner: object, map_shape: tuple[int, int], tiles: int) -> None:
        self.gpu, self.owner = gpu, owner
        self.uploaded, self.done = gpu.event(), gpu.event()
        self.staged: FrameMeta | None = None
        self.recorded: Recorded | None = None
        self._in_flight = False
        self._host: HostMemory | None = None
        self._address = 0
        # The view that was found to lie here: a slot keeps the same one for frames of one shape.
        self._known: U8 | None = None
        self._frame: DeviceMemory | None = None
        height, width = map_shape
        self._map_shape, self._tiles = map_shape, tiles
        self._mask_at = _WORD * height * width
        self._header_at = -(-(self._mask_at + height * width // 8) // _ALIGNMENT) * _ALIGNMENT
        size = self._header_at + _WORD * (2 + tiles)
        self._results: HostMemory = gpu.map(size) if self.shared else gpu.pin(size)
        self._device = None if self.shared else gpu.allocate(size)
        # Counted up by many threads at once, which the host's memory is slow at; the host does not ask for it.
        self._flagged = gpu.allocate(_WORD)
        header = self._results.array[self._header_at :]
        self._score = header[: 2 * _WORD].view(np.float32)
        self._prompts = header[2 * _WORD :].view(np.int32)

    @property
    def shared(self) -> bool:
        """Whether the device reads and writes the host's memory in place."""
        return self.gpu.facts.integrated

    # The frame

    def allocate(self, size: int) -> U8:
        """Return memory for frames of up to `size` bytes, in place of what there was."""
        if not size:
            return np.empty(0, np.uint8)
        self.gpu.make_current()
        self.settle()
        self.staged = None
        self._host = self.gpu.map(size) if self.shared else self.gpu.pin(size)
        self._frame = None if self.shared else self.gpu.allocate(size)
        self._address, self._known = self._host.address, None
        return self._host.array

    def holds(self, slot: Slot) -> bool:
        """Whether the slot has pixels, and they are the first bytes of this memory, row upon row."""
        pixels = slot.pixels
        if pixels is not self._known:
            if not pixels.size or pixels.ctypes.data != self._address or not pixels.flags.c_contiguous:
                return False
            self._known = pixels
        return True

    def take_in(self, slot: Slot) -> None:
        """Copy pixels that lie elsewhere into this memory; nothing where they lie here."""
        pixels = slot.pixels
        if not pixels.size or self.holds(slot):
            return
        if slot.memory.size < pixels.nbytes:
            slot.memory = self.allocate(pixels.nbytes)
        slot.pixels = slot.memory[: pixels.nbytes].reshape(pixels.shape)
        slot.pixels[...] = pixels

    @property
    def pixels(self) -> int:
        """Where the device reads the frame; 0 before there is memory for one."""
        if self.shared:
            return 0 if self._host is None or self._host.device_address is None else self._host.device_address
        return 0 if self._frame is None else self._frame.address

    def upload(self, slot: Slot, stream: Stream) -> int:
        """Queue the copy of the slot's pixels to the device and record `uploaded`; return how many bytes it copies."""
        if self.shared or self._host is None:
            return 0
        size = slot.pixels.nbytes
        self.gpu.copy_in(self.pixels, self._address, size, stream)
        self.uploaded.record(stream)
        self._in_flight = True
        return size

    def settle(self) -> None:
        """Wait until no upload reads or writes this memory."""
        if self._in_flight:
            self.uploaded.synchronize()
            self._in_flight = False

    # The results

    @property
    def arrays(self) -> tuple[F32, U8]:
        """Anomaly map and mask as the host sees them."""
        height, width = self._map_shape
        memory = self._results.array
        anomaly_map = memory[: self._mask_at].view(np.float32).reshape(height, width)
        mask = memory[self._mask_at : self._mask_at + height * width // 8].reshape(height, width // 8)
        return anomaly_map, mask

    @property
    def results(self) -> Results:
        """Where the device writes."""
        base = self._device.address if self._device is not None else self._results.device_address
        assert base is not None
        header = base + self._header_at
        score, peak, prompts = (header + _WORD * word for word in range(3))
        return Results(base, base + self._mask_at, score, peak, self._flagged.address, prompts)

    @property
    def download_bytes(self) -> int:
        """How many bytes `download` copies."""
        return 0 if self._device is None else self._device.size

    def download(self, stream: Stream) -> None:
        """Queue the copy of all results to the host."""
        if self._device is not None:
            self.gpu.copy_out(self._results.address, self._device.address, self._device.size, stream)

    def spoil(self) -> None:
        """Overwrite the last frame's score, so that it cannot pass for this one's."""
        self._score[:] = math.nan
        self._prompts[:] = -1

    def read(self) -> tuple[float, float, list[int]]:
        """Return image score, peak, and each tile's prompt, once `done` is reached."""
        return float(self._score[0]), float(self._score[1]), [int(prompt) for prompt in self._prompts]
