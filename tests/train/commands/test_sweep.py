"""train-sweep as it is given, with real trainings of tiny products."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.commands.sim import main as simulate
from train.commands import sweep
from train.commands.sweep import main
from train.runfolder import RunFolder
from train.trained import load_trained

OPTIONS = ["--epochs", "1", "--size", "64", "--batch", "4", "--prompts", "4", "--turned", "none", "--device", "cpu"]


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """One whole product and one whose only image is damaged."""
    root = tmp_path / "plant"
    sizes = ["--width", "64", "--height", "64"]
    assert simulate([str(root / "cap"), "--train", "8", "--test", "4", "--good", "4", *sizes]) == 0
    damaged = root / "bad" / "train" / "good" / "a.png"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no image")
    return root


def summary(out: Path) -> dict[str, object]:
    read: dict[str, object] = json.loads((out / "summary.json").read_text())
    return read


@pytest.mark.slow
def test_one_bad_product_stops_no_other_and_finished_runs_are_skipped(
    plant: Path, random_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    arguments = [str(plant), "--out", str(out), "--threads", "1", "--weights", str(random_weights), *OPTIONS]
    assert main(arguments) == 10
    shown = capsys.readouterr()
    assert "1 of 2 runs failed: bad (seed 0)" in shown.err
    assert "cap" in shown.out
    result = summary(out)
    assert result["counts"] == {"done": 1, "failed": 1, "interrupted": 0, "waiting": 0}
    bad, cap = result["runs"]  # type: ignore[misc]
    assert "none of the 1 images can be read" in bad["error"]
    assert bad["exit_code"] == 7
    assert 0 <= cap["metrics"]["image_auroc"] <= 1
    model = out / "cap" / "seed0" / "model.pt"
    load_trained(RunFolder(model.parent))
    before = model.stat().st_mtime_ns
    (plant / "bad").rename(tmp_path / "away")
    assert main(arguments) == 0
    assert "1 of 1 runs are finished already" in capsys.readouterr().err
    assert model.stat().st_mtime_ns == before


@pytest.mark.slow
def test_runs_beside_each_other_on_ray_end_with_ctrl_c(plant: Path, random_weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "runs"
    own = ["--out", str(out), "--seeds", "0,1", "--jobs", "2", "--threads", "1", "--weights", str(random_weights)]
    script = "import sys; from train.commands.sweep import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(plant / "cap"), *own, *OPTIONS[2:], "--epochs", "1000"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = [out / "cap" / f"seed{seed}" / "backbone.pth" for seed in (0, 1)]
    deadline = time.monotonic() + 150
    while not all(path.exists() for path in begun) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=150)
    assert process.returncode == 130, text
    result = summary(out)
    assert result["counts"]["interrupted"] == 2, text  # type: ignore[index]
    for path in begun:
        # The runs were asked to end, not killed.
        assert path.parent.with_name(f"{path.parent.name}.log").read_text().rstrip().endswith("interrupted")


def test_without_ray_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep.importlib.util, "find_spec", lambda name: None if name == "ray" else object())
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--jobs", "2"]) == 2
    assert "redi-edge[sweep]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["--seeds", "0,0"], ["--seeds", "a"], ["--epochs", "x"], ["--jobs", "0"], ["--minutes", "1", "--epochs", "1"]],
)
def test_wrong_arguments_are_refused_before_anything_runs(tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "x"), "--out", str(tmp_path / "out"), *wrong])
    assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()


def test_options_of_train_run_are_passed_on(tmp_path: Path) -> None:
    args = sweep.parser().parse_args([str(tmp_path), "--out", "o", "--minutes", "2", "--size", "512x256"])
    assert sweep._options(args) == ["--minutes=2.0", "--size=512x256"]
