from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge.commands.verify import _parser, main
from edge.inspection.portable import PRECISIONS, openvino_core
from tests.edge.inspection.cuda.emulated import EmulatedGpu
from tests.edge.inspection.cuda.fake_tensorrt import World, play_machine
from tests.tiny_bundle import TOLERANCE, TinyBundle, Weights, core_graph, write_tiny_bundle


def test_scores_as_recorded(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny.path), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    for word in ("portable: OpenVINO", "frame0", "frame2", "recorded", "here", "difference", "1.00%"):
        assert word in out


def test_json_says_what_the_oracle_says(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny.path), "--threads", "1", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert report["within"] is True
    assert report["tolerance"] == TOLERANCE
    (run,) = report["runtimes"]
    assert run["runtime"] == "portable"
    images = [tiny.product.good(0), tiny.product.good(1), tiny.product.defective(2)]
    assert [frame["frame"] for frame in run["frames"]] == ["frame0", "frame1", "frame2"]
    for frame, image in zip(run["frames"], images, strict=True):
        assert frame["here"] == pytest.approx(tiny.score(image)[0], rel=1e-3)
        assert frame["difference"] < 1e-3
        assert frame["within"] is True


@pytest.mark.parametrize("factor", [1 + 3 * TOLERANCE, 1 - 3 * TOLERANCE])
def test_scores_that_moved_are_shown_and_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float
) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", golden_factor=factor).path
    assert main([str(path), "--threads", "1", "--json"]) == 9
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["within"] is False
    for frame in report["runtimes"][0]["frames"]:
        assert frame["within"] is False
        assert frame["difference"] == pytest.approx(abs(1 / factor - 1), rel=0.02)
    assert "1.00% accepted" in captured.err
    assert main([str(path), "--threads", "1"]) == 9
    captured = capsys.readouterr()
    assert "frame1" in captured.out
    assert "every golden frame" not in captured.err


def test_a_frame_that_cannot_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Weights()
    weights.down[0][:] = np.nan
    path = write_tiny_bundle(tmp_path / "redi.plan", core=core_graph(weights)).path
    assert main([str(path), "--threads", "1", "--json"]) == 9
    captured = capsys.readouterr()
    for frame in json.loads(captured.out)["runtimes"][0]["frames"]:
        assert (frame["here"], frame["difference"], frame["within"]) == (None, None, False)
        assert "not finite" in frame["reason"]
    assert "golden frame frame0: " in captured.err
    assert main([str(path), "--threads", "1"]) == 9
    assert "fault" in capsys.readouterr().out


def test_no_calibration_is_needed(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "redi.plan", calibrated=False).path
    assert main([str(path), "--threads", "1"]) == 0


def test_unusable_bundles(tiny: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = write_tiny_bundle(tmp_path / "nothing.plan", golden_frames=0).path
    half = tmp_path / "half.plan"
    half.write_bytes(tiny.path.read_bytes()[:-5000])
    for path, word in ((nothing, "no golden frames"), (half, "half.plan"), (tmp_path / "none.plan", "no such file")):
        assert main([str(path)]) == 3
        captured = capsys.readouterr()
        assert captured.out == ""
        assert word in captured.err


def test_a_precision_of_this_processor_or_a_clear_refusal(tiny: TinyBundle, capsys: pytest.CaptureFixture[str]) -> None:
    able = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    code = main([str(tiny.path), "--threads", "1", "--precision", "bf16"])
    # Where there is bf16, its rounding may or may not move the tiny network's scores beyond the tolerance.
    assert code in ((0, 9) if able else (6,))
    assert able or "bf16" in capsys.readouterr().err


def test_every_runtime_of_the_machine_is_verified(
    tiny: TinyBundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu = EmulatedGpu()
    play_machine(monkeypatch, World(), gpu)
    assert main([str(tiny.path), "--threads", "1", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    runs = json.loads(line)["runtimes"]
    assert [run["runtime"] for run in runs] == ["cuda", "portable"]
    assert runs[0]["describe"].startswith("cuda: TensorRT 10.3.0 fp32 on Emulated")
    for here, there in zip(runs[0]["frames"], runs[1]["frames"], strict=True):
        # On a GPU the prompts' features are float16.
        assert here["here"] == pytest.approx(there["here"], rel=1e-3)
    # One of them that moved is enough.
    moved = write_tiny_bundle(tmp_path / "redi.plan", golden_factor=1 + 3 * TOLERANCE).path
    assert main([str(moved), "--threads", "1", "--json"]) == 9
    gpu.close()


def test_help_lists_exit_codes_and_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "exit codes" in capsys.readouterr().out
    assert next(a.choices for a in _parser()._actions if a.dest == "precision") == PRECISIONS
