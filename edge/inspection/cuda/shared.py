"""What all cameras of one model share on the device.

Their frames queue on one stream, in the order in which they come: weights, scratch memory and the network's context
exist once, and nothing that two frames use has to be guarded but the queueing itself.  A device whose one frame at a
time leaves much of it idle would gain from a stream for each camera; the devices that this is made for do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from edge.bundle import DESCRIPTORS, Bundle
from edge.errors import CudaError, RuntimeUnavailableError
from edge.inspection.cuda.device import Gpu, Graph
from edge.inspection.cuda.engine import Engine
from edge.inspection.cuda.plan import FrameTables, Plan
from edge.inspection.cuda.prompt_cache import PromptCache
from edge.inspection.cuda.seat import Part, Seat


class SharedModel:
    """One model on one device.

    Args:
        bundle: with the model.
        gpu: the device, current in this thread.
        engine: opens the core; closed with the last runtime.
        prompt_bytes: device memory for the prompts' features.
        key: equal for equal models.

    Attributes:
        key: equal for equal models.
        lock: held by whoever queues on `stream` or records.
        prompts: None where the model takes none.
    """

    def __init__(
        self,
        bundle: Bundle,
        gpu: Gpu,
        engine: Callable[[], Engine],
        prompt_bytes: int,
        key: tuple[object, ...],
    ) -> None:
        model = bundle.manifest.model
        core = model.core
        if core.uses_prompt and core.prompt_choice != "nearest":
            raise RuntimeUnavailableError(
                f"{bundle.path} chooses its prompts by {core.prompt_choice} draw, which a GPU does not",
                "use --runtime portable",
            )
        self.key, self.gpu, self.model = key, gpu, model
        self.lock = threading.Lock()
        self._users = 0
        self.stream = gpu.stream()
        self.prompts: PromptCache | None = None
        addresses: dict[str, int] = {}
        if core.uses_prompt:
            features = {name: bundle.array(f"prompts/{name}.npy") for name in core.prompt_features}
            self.prompts = PromptCache(gpu, bundle.array(DESCRIPTORS), features, prompt_bytes, self.stream)
            self._prompt = gpu.allocate(4 * self.prompts.size)
            addresses = {
                f"prompt_{name}": self._prompt.address + 4 * offset for name, offset in self.prompts.offsets.items()
            }
        self.plan = Plan(gpu, model, 0 if self.prompts is None else self.prompts.entries, self.stream)
        addresses |= {name: memory.address for name, memory in self.plan.ports.items()}
        self.engine = engine()
        try:
            self.engine.bind(addresses)
            # Engines put work off to their first inference that cannot be recorded.
            self.engine.enqueue(self.stream)
            self.stream.synchronize()
        except BaseException:
            self.engine.close()
            raise

    def record(self, seat: Seat, tables: FrameTables, row_bytes: int, threshold: float) -> tuple[Graph, list[Part]]:
        """Return a frame's work as one graph, and each stage of each tile as one; the lock is held.

        Args:
            seat: of the slot.
            tables: for its kind of frame.
            row_bytes: of the frame.
            threshold: pixel threshold.
        """
        steps = list(self._steps(seat, tables, row_bytes, threshold))
        parts = [Part(stage, self.gpu.record(self.stream, work)) for stage, work in steps]

        def everything() -> None:
            for _, work in steps:
                work()

        return self.gpu.record(self.stream, everything), parts

    def _steps(
        self, seat: Seat, tables: FrameTables, row_bytes: int, threshold: float
    ) -> Iterator[tuple[str, Callable[[], None]]]:
        for tile in range(self.model.canvas.tiles):
            yield "before", partial(self._before, seat, tables, tile, row_bytes)
            yield "core", partial(self.engine.enqueue, self.stream)
            yield "after", partial(self._after, seat, tables, tile, threshold)

    def _before(self, seat: Seat, tables: FrameTables, tile: int, row_bytes: int) -> None:
        self.plan.prepare(tables, tile, seat.pixels, row_bytes)
        self.plan.hog()
        if self.prompts is not None:
            chosen = seat.results.prompts + 4 * tile
            self.plan.choose(self.prompts.descriptors, chosen)
            self.plan.gather(self.prompts.table, chosen, self.prompts.size, self._prompt.address)

    def _after(self, seat: Seat, tables: FrameTables, tile: int, threshold: float) -> None:
        self.plan.compare(tile, tables.area, threshold, seat.results)
        if tile == self.model.canvas.tiles - 1:
            seat.download(self.stream)

    def acquire(self) -> None:
        """Count one more runtime that uses it."""
        with self.lock:
            self._users += 1

    def release(self) -> None:
        """Count one fewer; the last one's end frees the engine."""
        with self.lock:
            self._users -= 1
            with suppress(CudaError):
                self.stream.synchronize()
                if self.prompts is not None:
                    self.prompts.settle()
            if self._users == 0:
                self.engine.close()
