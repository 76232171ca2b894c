from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.bundle import Bundle
from edge.errors import BundleError, BundleMismatchError, RuntimeUnavailableError, UsageError
from edge.frames import U8, PixelFormat, Slot
from edge.inspection.portable import PortableRuntime, openvino_core
from edge.inspection.runtime import STAGES, Outcome
from edge.inspection.select import open_runtime
from edge.machine import physical_cores
from tests.tiny_bundle import TinyBundle, Weights, core_graph, write_tiny_bundle


def run(runtime: PortableRuntime, slot: Slot, image: U8) -> Outcome:
    height, width = image.shape[:2]
    slot.shape_pixels(height, width, PixelFormat.BGR8)[:] = image
    return runtime.run(slot, 0.1)


def test_scores_and_prompts_are_those_of_the_oracle(tiny: TinyBundle) -> None:
    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        prompts = set()
        for index in (3, 1, 1, 4, 0, 2):
            for image in (tiny.product.good(index), tiny.product.defective(index)):
                outcome = run(runtime, slot, image)
                score, peak, prompt = tiny.score(image)
                assert outcome.score == pytest.approx(score, rel=1e-4)
                assert outcome.peak == pytest.approx(peak, rel=1e-4)
                assert outcome.prompt == prompt
                assert slot.anomaly_map.max() == np.float32(outcome.peak)
                assert np.array_equal(np.unpackbits(slot.mask, axis=1), slot.anomaly_map > 0.1)
                prompts.add(prompt)
        assert prompts == {0, 1, 2, 3, 4}
        assert outcome.latency_ms.keys() == set(STAGES)
        assert all(ms > 0 for ms in outcome.latency_ms.values())


def test_every_tensor_is_our_own_memory(tiny: TinyBundle) -> None:
    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        run(runtime, slot, tiny.product.good(2))
        request = runtime._request
        for name, array in (*runtime._inputs.items(), *runtime._outputs.items()):
            assert request.get_tensor(name).data.ctypes.data == array.ctypes.data, name
            assert array.ctypes.data % 64 == 0, name
        # The chosen prompt is a place in the mapped file itself.
        for name in bundle.manifest.model.core.prompt_features:
            entry = bundle.array(f"prompts/{name}.npy")[2]
            assert request.get_tensor(f"prompt_{name}").data.ctypes.data == entry.ctypes.data, name


def test_a_frame_allocates_no_array(tiny: TinyBundle) -> None:
    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        images = [tiny.product.good(0), tiny.product.defective(1)]
        for image in images:
            run(runtime, slot, image)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for image in images * 5:
                run(runtime, slot, image)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        smallest = min(array.nbytes for array in runtime._outputs.values() if array.nbytes > 4096)
        assert peak < min(smallest, slot.anomaly_map.nbytes)


def test_a_float16_bank_gives_the_same_scores(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", bank_dtype=np.float16)
    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        image = tiny.product.defective(3)
        assert run(runtime, slot, image).score == pytest.approx(tiny.score(image)[0], rel=1e-3)


def test_a_mixed_precision_graph_runs(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", half=True)
    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        image = tiny.product.defective(3)
        assert run(runtime, slot, image).score == pytest.approx(tiny.score(image)[0], rel=1e-2)


def test_a_model_without_prompts(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", uses_prompt=False, calibrated=False)
    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        (slot,) = runtime.make_slots(1, 0)
        (pixels,) = [tiny.product.good(1)]
        outcome = run(runtime, slot, pixels)
        assert outcome.prompt == -1
        # Without a prompt the toy network compares each position with a vector of ones.
        fx = [runtime._request.get_tensor(f"fx_{level}").data[0].astype(np.float64) for level in range(3)]
        coarse = [1 - x.sum(0) / np.sqrt((x * x).sum(0) * len(x)) for x in fx]
        assert outcome.score == pytest.approx(
            slot.anomaly_map.reshape(-1)[np.argsort(slot.anomaly_map, None)[-20:]].mean()
        )
        assert slot.anomaly_map.mean() == pytest.approx(sum(level.mean() for level in coarse), rel=0.02)


def edited(change: str) -> bytes:
    model = onnx.load_from_string(core_graph(Weights()))
    graph = model.graph
    if change == "input shape":
        graph.input[0].type.tensor_type.shape.dim[3].dim_value = 128
    elif change == "missing output":
        del graph.output[0]
    elif change == "input name":
        for node in graph.node:
            node.input[:] = ["image" if name == "x" else name for name in node.input]
        graph.input[0].name = "image"
    edited_model: bytes = model.SerializeToString()
    return edited_model


@pytest.mark.parametrize("change", ["input shape", "missing output", "input name"])
def test_a_graph_of_another_model_is_refused(tmp_path: Path, change: str) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", core=edited(change))
    with Bundle.open(tiny.path) as bundle, pytest.raises(BundleError) as caught:
        PortableRuntime(bundle, threads=1)
    assert str(tiny.path) in caught.value.problem
    assert "export" in caught.value.hint


def test_a_graph_of_another_input_size_names_both(tmp_path: Path) -> None:
    # A graph that is sound in itself, but for 128 x 128.
    model = onnx.load_from_string(core_graph(Weights(), uses_prompt=False))
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim[2:]:
            dim.dim_value *= 2
    for constant in model.graph.initializer:
        if constant.name.startswith("ones"):
            shape = [*constant.dims[:2], constant.dims[2] * 2, constant.dims[3] * 2]
            constant.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), constant.name))
    tiny = write_tiny_bundle(
        tmp_path / "redi.plan", uses_prompt=False, calibrated=False, core=model.SerializeToString()
    )
    with Bundle.open(tiny.path) as bundle, pytest.raises(BundleMismatchError, match=r"128, 128.*64, 64"):
        PortableRuntime(bundle, threads=1)


def test_a_core_that_is_no_graph_is_one_clear_error(tmp_path: Path) -> None:
    tiny = write_tiny_bundle(tmp_path / "redi.plan", core=b"this is no graph")
    with Bundle.open(tiny.path) as bundle, pytest.raises(BundleError, match=r"core\.onnx") as caught:
        PortableRuntime(bundle, threads=1)
    assert "\n" not in caught.value.problem


def test_a_graph_whose_names_are_no_text_is_one_clear_error(tmp_path: Path) -> None:
    core = core_graph(Weights()).replace(b"prompt_level1", b"prompt_\xffevel1")
    tiny = write_tiny_bundle(tmp_path / "redi.plan", core=core)
    with Bundle.open(tiny.path) as bundle, pytest.raises(BundleError, match=r"redi\.plan: core\.onnx"):
        PortableRuntime(bundle, threads=1)


def test_precision_is_pinned_and_shown(tiny: TinyBundle) -> None:
    import openvino

    with Bundle.open(tiny.path) as bundle:
        runtime = PortableRuntime(bundle, threads=1)
        assert runtime._model.compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
        assert runtime._model.compiled.get_property("NUM_STREAMS") == 1
        assert " f32 " in runtime.describe
        assert "1 thread," in runtime.describe
        if "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            assert " bf16 " in PortableRuntime(bundle, threads=1, precision="bf16").describe
        else:
            with pytest.raises(RuntimeUnavailableError, match="bf16"):
                PortableRuntime(bundle, threads=1, precision="bf16")


@pytest.mark.parametrize(("setting", "value"), [("threads", 0), ("threads", 10**6), ("precision", "int4")])
def test_senseless_settings_are_refused(tiny: TinyBundle, setting: str, value: object) -> None:
    with Bundle.open(tiny.path) as bundle, pytest.raises(UsageError, match=str(value)):
        PortableRuntime(bundle, **{setting: value})  # type: ignore[arg-type]


def test_physical_cores_are_those_that_the_process_may_use() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from edge.machine import physical_cores; print(physical_cores())"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "1"


def test_a_machine_on_which_openvino_cannot_be_loaded(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge.inspection.portable")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with Bundle.open(tiny.path) as bundle, pytest.raises(RuntimeUnavailableError, match="OpenVINO") as caught:
        open_runtime(bundle)
    assert "pip install" in caught.value.hint


def test_a_model_that_another_thread_lets_go_of_leaves_signals_alone(tiny: TinyBundle) -> None:
    """OpenVINO's CPU plugin lends its first thread a stack for signals, and takes it back with its last use."""
    code = (
        "import os, signal, sys, threading\n"
        "from edge.bundle import Bundle\n"
        "from edge.inspection.portable import PortableRuntime\n"
        "signal.signal(signal.SIGUSR1, lambda number, frame: print('alive'))\n"
        "held = [PortableRuntime(Bundle.open(sys.argv[1]), threads=1)]\n"
        "thread = threading.Thread(target=held.clear)\n"
        "thread.start(); thread.join()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny.path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "alive\n")
