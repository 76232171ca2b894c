"""The prompt cache on the emulated device: whatever moves when, a frame is compared with its own prompt, whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int, c_void_p
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from edge.bundle import DESCRIPTORS, Bundle
from edge.errors import RuntimeUnavailableError
from edge.inspection.cuda.device import HostMemory
from edge.inspection.cuda.prompt_cache import PromptCache
from edge.inspection.runtime import CacheReport
from edge.manifest import CanvasSpec
from tests.edge.inspection.cuda.cases import FRAME_BYTES, PRODUCT, Reference, emulated, found, place
from tests.edge.inspection.cuda.emulated import EmulatedEvent, EmulatedGpu, EmulatedStream
from tests.tiny_bundle import TinyBundle, write_tiny_bundle

MakeMemory: TypeAlias = "Callable[[int], HostMemory]"
#: 6 x 16 x 16, 8 x 8 x 8 and 10 x 4 x 4 numbers, each a multiple of 128 numbers, of two bytes.
ENTRY_BYTES = 2 * (1536 + 512 + 256)
#: Parts of five textures: a prompt each.
ORDER = (0, 3, 3, 1, 3, 4, 4, 0, 2, 2, 2, 1)
MANY = (0, 3, 3, 3, 3, 1, 3, 4, 4, 4, 0, 0, 2, 2, 2, 1, 1, 1, 3, 1)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    return write_tiny_bundle(tmp_path_factory.mktemp("half") / "redi.plan", bank_dtype=np.float16)


@pytest.fixture(scope="module")
def reference(half: TinyBundle) -> Reference:
    return Reference(half.path)


def wrong_frames(half: TinyBundle, reference: Reference, gpu: EmulatedGpu, places: int) -> list[int]:
    """Inspect parts with room for so many prompts; return which of them were found otherwise than they are."""
    wrong = []
    with emulated(half.path, gpu, prompt_bytes=places * ENTRY_BYTES + 100) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for at, index in enumerate(ORDER):
            if found(runtime, place(slot, PRODUCT.good(index))) != reference(PRODUCT.good(index)):
                wrong.append(at)
    return wrong


@pytest.mark.parametrize(("places", "seed"), [(0, 0), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (4, 0), (5, 2)])
def test_a_miss_costs_no_frame_its_prompt(half: TinyBundle, reference: Reference, places: int, seed: int) -> None:
    assert wrong_frames(half, reference, EmulatedGpu(integrated=places == 2, seed=seed), places) == []


def test_what_is_used_again_and_again_moves_to_the_device(half: TinyBundle, reference: Reference) -> None:
    gpu = EmulatedGpu(seed=1)
    with emulated(half.path, gpu, prompt_bytes=2 * ENTRY_BYTES) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        reports = []
        for index in (0, 3, 3, 3, 0, 1):
            allocations = gpu.allocations
            assert found(runtime, place(slot, PRODUCT.good(index))) == reference(PRODUCT.good(index))
            reports.append(runtime.caches["prompts"])
        assert gpu.allocations == allocations
        # 0 is there.  3 is missed, moves during the next frame, which misses it too, and is there for the third.
        assert [report.hits for report in reports] == [1, 1, 1, 2, 3, 3]
        assert [report.misses for report in reports] == [0, 1, 2, 2, 2, 3]
        assert [report.promotions for report in reports] == [0, 0, 1, 1, 1, 1]
        # One place is being filled at the end.
        assert reports[-1] == CacheReport(hits=3, misses=3, promotions=1, bytes=ENTRY_BYTES)
        frames = 2 * len(reports)
        assert runtime.traffic.copies == frames + 3 + 2


def test_a_bank_that_fits_is_on_the_device_alone(half: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bundle.open(half.path) as bundle:
        features = {name: bundle.array(f"prompts/{name}.npy") for name in bundle.manifest.model.core.prompt_features}
        for budget, mapped in ((5 * ENTRY_BYTES, 0), (5 * ENTRY_BYTES - 1, 5 * ENTRY_BYTES)):
            gpu = EmulatedGpu()
            sizes: list[int] = []
            map_memory = gpu.map

            def counted(size: int, sizes: list[int] = sizes, make: MakeMemory = map_memory) -> HostMemory:
                sizes.append(size)
                return make(size)

            monkeypatch.setattr(gpu, "map", counted)
            cache = PromptCache(gpu, bundle.array(DESCRIPTORS), features, budget, gpu.stream())
            assert sum(sizes) == mapped
            assert cache.report.bytes == min(budget // ENTRY_BYTES, 5) * ENTRY_BYTES
            table = gpu.read(cache.table, np.uint64, (5,))
            level1 = gpu.read(int(table[2]) + 2 * cache.offsets["level1"], np.float16, features["level1"].shape[1:])
            assert np.array_equal(level1, features["level1"][2])
            gpu.close()


def test_features_beyond_float16_are_refused() -> None:
    features = {"key": np.array([[1.0, 7e4]], np.float32)}
    gpu = EmulatedGpu()
    with pytest.raises(RuntimeUnavailableError, match="key") as caught:
        PromptCache(gpu, np.ones((1, 4), np.float32), features, 1 << 20, gpu.stream())
    assert "portable" in caught.value.hint


def test_each_tile_has_its_prompt(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", bank_dtype=np.float16, canvas=CanvasSpec("stretch", 2, 2, 32)).path
    reference = Reference(path)
    with emulated(path, EmulatedGpu(seed=2), prompt_bytes=3 * ENTRY_BYTES) as runtime:
        (slot,) = runtime.make_slots(1, FRAME_BYTES)
        for index in (0, 4, 4):
            assert found(runtime, place(slot, PRODUCT.good(index))) == reference(PRODUCT.good(index))
        report = runtime.caches["prompts"]
        assert report.hits + report.misses == 12
        assert report.promotions > 0


def gathered(seed: int, places: int = 1) -> list[int]:
    """Let many frames be under way at once, as several cameras' are; return those that got a wrong prompt.

    The cache learns of each while it, and all before it, may not have begun.
    """
    gpu = EmulatedGpu(seed=seed)
    stream = gpu.stream()
    features = {"key": np.arange(5 * 300, dtype=np.float16).reshape(5, 300)}
    cache = PromptCache(gpu, np.ones((5, 4), np.float32), features, places * 2 * 384, stream)
    indices = gpu.pin(4 * len(MANY))
    indices.array.view(np.int32)[:] = MANY
    chosen, found = gpu.allocate(4 * len(MANY)), gpu.allocate(4 * cache.size * len(MANY))
    gpu.copy_in(chosen.address, indices.address, 4 * len(MANY), stream)
    kernel = gpu.kernel("prompts", "gather_prompt")
    for at, index in enumerate(MANY):
        addresses = [c_void_p(chosen.address + 4 * at), c_void_p(cache.table)]
        to = c_void_p(found.address + 4 * cache.size * at)
        gpu.launch(kernel, 1, 32, (*addresses, c_int(cache.size), to), stream)
        cache.use([index])
    stream.synchronize()
    values = gpu.read(found.address, np.float32, (len(MANY), cache.size))
    wrong = [at for at, index in enumerate(MANY) if not np.array_equal(values[at, :300], features["key"][index])]
    gpu.close()
    return wrong


def test_prompts_move_while_many_frames_are_under_way() -> None:
    for seed in range(12):
        assert gathered(seed, 1 + seed % 3) == []


# What the emulated device is for: without any one of the waits, some frame is wrong in some order of work.


@contextmanager
def without_wait(number: int) -> Iterator[list[int]]:
    """Leave out the waits for the event that is made as the cache's `number`-th."""
    skipped: list[int] = []
    made: list[EmulatedEvent] = []
    make, wait = EmulatedGpu.event, EmulatedStream.wait

    def event(self: EmulatedGpu, *, timing: bool = False) -> EmulatedEvent:
        made.append(make(self, timing=timing))
        return made[-1]

    def maybe_wait(self: EmulatedStream, event: EmulatedEvent) -> None:
        if event is made[-2:][number]:
            skipped.append(1)
        else:
            wait(self, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmulatedGpu, "event", event)
        patch.setattr(EmulatedStream, "wait", maybe_wait)
        yield skipped


@pytest.mark.parametrize(("number", "wait"), [(0, "vacated"), (1, "arrived")])
def test_a_missing_wait_would_show(number: int, wait: str) -> None:
    with without_wait(number) as skipped:
        wrong = [at for seed in range(12) for at in gathered(seed)]
    assert skipped, wait
    assert wrong, wait
