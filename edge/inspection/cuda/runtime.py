"""The CUDA runtime: a frame is copied to the GPU once, if at all, and stays there until its results come back.

    capture thread    slot ──copy──► device                   transfer stream, while the last frame is inspected
    inspect thread    before → prompt → core → after → slot   one graph for each slot, launched as one

The kernels are those of the portable runtime and give the same bits; between them runs an `Engine`.  Each slot has its
own frame and results on the device, so that one is filled while another is inspected and a third is published; events
put in order what two streams do.  Nothing is allocated once each slot has met its frames: a graph is recorded anew
where a frame's shape or format or the pixel threshold has changed, and only then.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter_ns

from edge.bundle import Bundle
from edge.errors import CudaError
from edge.frames import Slot
from edge.inspection.corrections import NOTHING, Corrections
from edge.inspection.cuda.device import Gpu
from edge.inspection.cuda.engine import Engine
from edge.inspection.cuda.plan import FrameTables
from edge.inspection.cuda.prompt_cache import PROMPT_BYTES
from edge.inspection.cuda.seat import Part, Recorded, Seat
from edge.inspection.cuda.shared import SharedModel
from edge.inspection.native import Preprocessor
from edge.inspection.runtime import STAGES, CacheReport, Outcome, Traffic, model_digests

#: Kinds of frames whose tables are kept on the device.
_KEPT_KINDS = 8


class CudaRuntime:
    """A bundle's model on a GPU; see `edge.inspection.runtime.Runtime`.

    Args:
        bundle: where the model and the prompt bank are.
        corrections: made of every frame.
        gpu: the device; default: that of `share`, else the process's own.
        engine: the core, closed with the last runtime that uses it; default: the bundle's engine for this machine.
        share: another runtime, whose weights are used where they are the same model's.
        prompt_bytes: device memory for the prompts' features, default `PROMPT_BYTES`; what does not fit is read over
            the bus.
        timed: measure core and after of every frame by the device's clock, with a graph for each stage; before is the
            rest.  Otherwise a frame is one graph, whose time is split as that of the slot's first frame of its kind.

    Raises:
        RuntimeUnavailableError, CudaError: the device or its software is not there, or cannot hold the model.
        BundleMismatchError: the engine's inputs and outputs are not those that the manifest promises.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        corrections: Corrections = NOTHING,
        gpu: Gpu | None = None,
        engine: Engine | None = None,
        share: CudaRuntime | None = None,
        prompt_bytes: int | None = None,
        timed: bool = False,
    ) -> None:
        spec = bundle.manifest.model
        self._gpu: Gpu = gpu or (share._gpu if share is not None else _own_gpu())
        self._gpu.make_current()
        self._corrections = corrections
        self._preprocess = Preprocessor(spec.input, spec.map, spec.canvas, corrections=corrections)
        room = PROMPT_BYTES if prompt_bytes is None else prompt_bytes
        key = (*model_digests(bundle), room)
        shared = None if share is None or engine is not None or share._gpu is not self._gpu else share._shared
        if shared is None or shared.key != key:
            shared = SharedModel(bundle, self._gpu, lambda: engine or _bundled_engine(bundle, self._gpu), room, key)
        self._shared: SharedModel = shared
        shared.acquire()
        self._transfer = self._gpu.stream()
        self._tables: dict[tuple[object, ...], FrameTables] = {}
        self._timed = timed
        self._marks = [self._gpu.event(timing=True) for _ in range(3 * spec.canvas.tiles + 1)]
        # Held by whoever queues on the transfer stream, and to close.
        self._lock = threading.Lock()
        self._open = True
        # Each counted by one thread at a time.
        self._uploads = self._downloads = Traffic()

    @property
    def describe(self) -> str:
        """One line for people: runtime, device, engine, how frames get there."""
        facts = self._gpu.facts
        major, minor = facts.compute_capability
        how = "frames are read in place" if facts.integrated else "frames are copied once"
        return f"cuda: {self._shared.engine.describe} on {facts.name} (compute capability {major}.{minor}), {how}"

    @property
    def caches(self) -> Mapping[str, CacheReport]:
        """What the prompt cache, shared by all cameras of this model, has done."""
        prompts = self._shared.prompts
        return {} if prompts is None else {"prompts": prompts.report}

    @property
    def traffic(self) -> Traffic:
        """What this camera's frames have copied, and all cameras' promotions of prompts."""
        prompts = self._shared.prompts
        promoted = Traffic() if prompts is None else prompts.traffic
        return self._uploads + self._downloads + promoted

    def make_slots(self, count: int, frame_bytes: int) -> list[Slot]:
        """Allocate frame slots that the device reads in place where it can, and copies from at full speed elsewhere."""
        self._gpu.make_current()
        slots = []
        for index in range(count):
            seat = self._new_seat()
            slots.append(Slot(index, seat.allocate(frame_bytes), *seat.arrays, allocate=seat.allocate, seat=seat))
        return slots

    def fit(self, slot: Slot) -> None:
        """Give a slot that was made for another model the memory that this one needs; nothing where it has it."""
        self._fitted(slot)

    def stage(self, slot: Slot) -> None:
        """Begin to copy the slot's pixels to the device.

        It neither waits nor raises: what fails here fails in `run`, which also brings what was not staged.
        """
        with self._lock:
            seat = slot.seat
            if not self._open or not isinstance(seat, Seat) or seat.owner is not self or not seat.holds(slot):
                return
            seat.staged = None
            try:
                self._gpu.make_current()
                self._upload(slot, seat)
            except CudaError:
                return
            seat.staged = slot.meta

    def run(self, slot: Slot, pixel_threshold: float) -> Outcome:
        """Inspect the slot's pixels: fill its `anomaly_map`, `mask` (map above `pixel_threshold`) and `area`.

        Raises:
            FrameError: the frame cannot be used (size zero, wrong channel count).
            CudaError: the GPU has failed; no later frame can be inspected.
        """
        start = perf_counter_ns()
        self._gpu.make_current()
        tables = self._tables_of(slot)
        seat = self._fitted(slot)
        seat.take_in(slot)
        with self._lock:
            if seat.staged is not slot.meta:
                self._upload(slot, seat)
            seat.staged = None
        seat.spoil()
        stages_ms = self._work(slot, seat, tables, pixel_threshold)
        score, peak, prompts = seat.read()
        slot.area = tables.area
        first = -1
        if self._shared.prompts is not None:
            if min(prompts) < 0:
                raise CudaError("the GPU has left no result of a frame, and no error either")
            first = prompts[0]
            with self._shared.lock:
                self._shared.prompts.use(prompts)
        total_ms = (perf_counter_ns() - start) / 1e6
        if self._timed:
            # All that is not the device's work between the core's beginning and the end: launching, and the upload.
            stages_ms["before"] = total_ms - stages_ms["core"] - stages_ms["after"]
        elif seat.recorded is not None:
            stages_ms = {stage: total_ms * share for stage, share in seat.recorded.shares.items()}
        return Outcome(score, peak, first, stages_ms)

    def close(self) -> None:
        """Free the model; the slots' memory stays valid as long as it is referenced."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            # What is still queued uses what is freed next; on a device that has failed nothing is.
            with suppress(CudaError):
                self._gpu.make_current()
                self._transfer.synchronize()
        self._shared.release()
        self._tables.clear()

    def _work(self, slot: Slot, seat: Seat, tables: FrameTables, threshold: float) -> dict[str, float]:
        """Do a frame's work and wait for it; return each stage's time on the device, where it was measured."""
        shared, stream = self._shared, self._shared.stream
        key = (slot.pixels.shape, slot.pixel_format, slot.corrected, threshold, seat.pixels)
        with shared.lock:
            recorded = seat.recorded if seat.recorded is not None and seat.recorded.key == key else None
            whole, parts = (
                shared.record(seat, tables, slot.pixels.strides[0], threshold)
                if recorded is None
                else (recorded.whole, recorded.parts)
            )
            if not seat.shared:
                stream.wait(seat.uploaded)
            if parts:
                self._launch_timed(parts)
            else:
                whole.launch(stream)
            self._downloads += Traffic.of(seat.download_bytes)
            seat.done.record(stream)
        seat.done.synchronize()
        if not parts:
            return {}
        stages_ms = dict.fromkeys(STAGES, 0.0)
        for part, begun, ended in zip(parts, self._marks[:-1], self._marks[1:], strict=True):
            stages_ms[part.stage] += ended.elapsed_ms(begun)
        if recorded is None:
            total_ms = sum(stages_ms.values()) or 1.0
            shares = {stage: ms / total_ms for stage, ms in stages_ms.items()}
            seat.recorded = Recorded(key, whole, tables, shares, tuple(parts) if self._timed else ())
        return stages_ms

    def _launch_timed(self, parts: Sequence[Part]) -> None:
        stream = self._shared.stream
        self._marks[0].record(stream)
        for part, mark in zip(parts, self._marks[1:], strict=True):
            part.graph.launch(stream)
            mark.record(stream)

    def _tables_of(self, slot: Slot) -> FrameTables:
        """Return the device's tables for frames like the slot's; a few kinds are kept."""
        on_host = self._preprocess.tables(slot.pixels, slot.pixel_format, corrected=slot.corrected)
        kind = (slot.pixels.shape, slot.pixel_format, slot.corrected)
        tables = self._tables.get(kind)
        if tables is None:
            flat_field = None if slot.corrected else self._corrections.flat_field
            with self._shared.lock:
                tables = self._shared.plan.place(on_host, flat_field)
            if len(self._tables) >= _KEPT_KINDS:
                self._tables.pop(next(iter(self._tables)))
            self._tables[kind] = tables
        return tables

    def _upload(self, slot: Slot, seat: Seat) -> None:
        """Queue the copy of a frame; the lock is held."""
        self._uploads += Traffic.of(seat.upload(slot, self._transfer))

    def _new_seat(self) -> Seat:
        return Seat(self._gpu, self, self._shared.plan.map_shape, self._shared.model.canvas.tiles)

    def _fitted(self, slot: Slot) -> Seat:
        """Return the slot's seat, made now where it has none of this runtime's."""
        seat = slot.seat
        if isinstance(seat, Seat) and seat.owner is self:
            return seat
        self._gpu.make_current()
        new = self._new_seat()
        slot.memory = new.allocate(max(slot.memory.size, slot.pixels.nbytes))
        slot.allocate, slot.seat = new.allocate, new
        slot.anomaly_map, slot.mask = new.arrays
        new.take_in(slot)
        if isinstance(seat, Seat):
            # Its upload may still be reading memory that nobody refers to any more.
            seat.settle()
        return new


def _own_gpu() -> Gpu:
    from edge.inspection.cuda.pycuda_device import own_gpu

    return own_gpu()


def _bundled_engine(bundle: Bundle, gpu: Gpu) -> Engine:
    from edge.inspection.cuda.build import open_engine

    return open_engine(bundle, gpu)
