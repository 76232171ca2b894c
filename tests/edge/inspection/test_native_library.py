"""Finding the kernels, choosing an instruction set, and calling from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge.errors import RuntimeUnavailableError
from edge.frames import PixelFormat, aligned_f32
from edge.inspection import library
from edge.inspection.native import Comparer, Preprocessor, choose_isa, isas, nearest
from edge.manifest import CompareSpec, InputSpec, MapSpec


def test_baseline_is_always_there_and_the_best_is_the_default(monkeypatch):
    monkeypatch.delenv("REDI_ISA", raising=False)
    assert isas()[0] == "baseline"
    assert choose_isa() == isas()[-1]


def test_environment_forces_an_instruction_set(monkeypatch):
    monkeypatch.setenv("REDI_ISA", "baseline")
    assert Preprocessor(InputSpec(), MapSpec()).isa == "baseline"
    assert Comparer(CompareSpec(scales=((1, 4, 4),)), 32, 32).isa == "baseline"


def test_unknown_instruction_set_is_refused(monkeypatch):
    with pytest.raises(RuntimeUnavailableError, match="mmx"):
        Preprocessor(InputSpec(), MapSpec(), isa="mmx")
    monkeypatch.setenv("REDI_ISA", "altivec")
    with pytest.raises(RuntimeUnavailableError, match="altivec") as caught:
        choose_isa()
    assert "baseline" in caught.value.hint


def test_missing_library_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", "libredi_absent.so")
    with pytest.raises(RuntimeUnavailableError, match=r"libredi_absent\.so") as caught:
        library._library.__wrapped__()
    assert "pip install" in caught.value.hint


def test_library_of_another_release_is_refused(monkeypatch):
    monkeypatch.setattr(library, "_ABI", 999)
    with pytest.raises(RuntimeUnavailableError, match="999"):
        library._library.__wrapped__()


def test_file_that_is_no_library_is_refused(monkeypatch, tmp_path):
    (tmp_path / library.LIBRARY).write_bytes(b"not a library")
    monkeypatch.setattr(library.edge.inspection, "__path__", [str(tmp_path)])
    with pytest.raises(RuntimeUnavailableError, match="cannot be loaded"):
        library._library.__wrapped__()


def test_objects_in_several_threads_do_not_disturb_each_other():
    spec = CompareSpec(scales=((8, 16, 16), (16, 8, 8)), top_k=20)

    def work(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        preprocessor, comparer = Preprocessor(InputSpec(height=64, width=64), MapSpec()), Comparer(spec, 64, 64)
        x, h = aligned_f32(3, 64, 64), aligned_f32(*preprocessor.map_shape)
        descriptor = aligned_f32(preprocessor.descriptor_size)
        anomaly_map, mask = aligned_f32(64, 64), np.zeros((64, 8), np.uint8)
        outputs = []
        for _ in range(30):
            pixels = rng.integers(0, 256, (100, 120, 3), dtype=np.uint8)
            fx = [rng.standard_normal(scale, dtype=np.float32) for scale in spec.scales]
            fy = [rng.standard_normal(scale, dtype=np.float32) for scale in spec.scales]
            bank = rng.random((int(rng.integers(1, 50)), descriptor.size), dtype=np.float32)
            preprocessor(pixels, PixelFormat.BGR8, x, h, descriptor)
            chosen = nearest(descriptor, bank)
            result = comparer(fx, fy, 1.0, anomaly_map, mask)
            outputs += [x.copy(), h.copy(), descriptor.copy(), anomaly_map.copy(), np.array([*chosen, *result])]
        return outputs

    alone = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(4)))
    for a, b in zip(alone, together, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


def test_tables_laid_out_otherwise_are_refused_before_any_call(monkeypatch):
    for place in range(len(library._LAYOUT)):
        other = list(library._LAYOUT)
        other[place] += 8
        monkeypatch.setattr(library, "_LAYOUT", tuple(other))
        with pytest.raises(RuntimeUnavailableError, match="laid out otherwise") as caught:
            library._library.__wrapped__()
        assert "pip install" in caught.value.hint
        monkeypatch.undo()
    monkeypatch.setattr(library, "_LAYOUT", library._LAYOUT[:-1])
    with pytest.raises(RuntimeUnavailableError, match="laid out otherwise"):
        library._library.__wrapped__()


def test_a_library_without_one_of_the_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(library, "_SIGNATURES", {**library._SIGNATURES, "redi_new": ()})
    with pytest.raises(RuntimeUnavailableError, match="redi_new") as caught:
        library._library.__wrapped__()
    assert "pip install" in caught.value.hint
