from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import DataError, TrainingError
from edge.manifest import InputSpec
from train import trainer
from train.commands.run import main as run
from train.config import TrainConfig
from train.pipeline import train
from train.runfolder import RunFolder
from train.trained import load_trained
from train.trainer import Plan, batches, learning_rate


def config(photos: Path, weights: Path, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {
        "data": str(photos),
        "weights": str(weights),
        "epochs": 2,
        "input": InputSpec(height=64, width=64),
        "batch": 4,
        "prompts": 4,
    }
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = load_trained(RunFolder(folder)).model
    return model.state_dict()


def assert_same(one: Path, two: Path) -> None:
    a, b = weights_of(one), weights_of(two)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 59))
def test_resumed_batches_are_those_of_an_unbroken_run(count: int, batch: int, start: int) -> None:
    whole = list(islice(batches(count, batch, (7, 2)), 60))
    rest = list(islice(batches(count, batch, (7, 2), start), 60 - start))
    assert all(np.array_equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


@given(st.integers(1, 40), st.integers(1, 16))
def test_an_epoch_shows_no_image_twice(count: int, batch: int) -> None:
    per_epoch = max(1, count // min(batch, count))
    shown = np.concatenate(list(islice(batches(count, batch, (1,)), per_epoch)))
    assert len(shown) == len(set(shown.tolist()))
    assert len(shown) > count - min(batch, count)


@given(st.floats(0, 1), st.floats(1e-5, 1e-1))
def test_the_rate_warms_up_peaks_and_decays(fraction: float, peak: float) -> None:
    assert 0 < learning_rate(fraction, peak) <= peak
    assert learning_rate(0, peak) < 0.05 * peak
    assert learning_rate(0.03, peak) > 0.99 * peak
    assert learning_rate(1, peak) == pytest.approx(0.02 * peak)


def test_a_plan_ends_by_steps_or_by_time_but_never_before_one_step() -> None:
    steps, timed, late = Plan(steps=4), Plan(seconds=2.0), Plan(seconds=0.0)
    assert [steps.fraction(n, 1e9) for n in (0, 1, 4)] == [0, 0.25, 1]
    assert [timed.fraction(n, t) for n, t in ((0, 5.0), (3, 0.5), (3, 2.0))] == [0, 0.25, 1]
    assert [late.fraction(n, 0.1) for n in (0, 1)] == [0, 1]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_photos: Path, random_weights: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    train(RunFolder(out), config(tiny_photos, random_weights))
    return out


@pytest.mark.parametrize(
    ("budget", "count", "steps"),
    [
        ({"steps": 7}, 12, 7),
        ({"steps": 7}, 1200, 7),
        ({"epochs": 3}, 12, 9),
        ({"epochs": 3}, 1200, 900),
        ({}, 12, 15),
    ],
)
def test_a_budget_counts_steps_or_passes(
    tmp_path: Path, budget: dict[str, int], count: int, steps: int, random_weights: Path
) -> None:
    settings = config(tmp_path, random_weights, **{"epochs": None, **budget})
    budget_left = SimpleNamespace(minutes=None)
    one = trainer.Trainer(RunFolder(tmp_path), settings, budget_left, None, torch.device("cpu"))  # type: ignore[arg-type]
    assert one.plan(count, 5, 1.0) == Plan(steps=steps)
    assert one.plan(count, 5, 1.0, times=2.0) == Plan(steps=2 * steps)


def test_the_same_seed_gives_the_same_model(
    tmp_path: Path, tiny_photos: Path, random_weights: Path, unbroken: Path
) -> None:
    train(RunFolder(tmp_path / "again"), config(tiny_photos, random_weights))
    assert_same(unbroken, tmp_path / "again")
    train(RunFolder(tmp_path / "other"), config(tiny_photos, random_weights, seed=1))
    with pytest.raises(AssertionError):
        assert_same(unbroken, tmp_path / "other")


@pytest.mark.parametrize("phase", ["recover", "discriminate"])
def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_model(
    tmp_path: Path,
    tiny_photos: Path,
    random_weights: Path,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    step, seen = trainer.Trainer._step, []

    def interrupted(self: object, at: trainer.Phase, *rest: object) -> float:
        if at.name == phase:
            seen.append(1)
            if len(seen) == 3:
                raise KeyboardInterrupt
        return step(self, at, *rest)  # type: ignore[arg-type]

    out = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(out, config(tiny_photos, random_weights))
    assert not out.finished
    with pytest.raises(TrainingError, match="not finished"):
        load_trained(out)
    train(out, config(tiny_photos, random_weights))
    assert out.finished
    assert not (out.path / "checkpoint.pt").exists()
    assert_same(unbroken, out.path)


@pytest.mark.slow
def test_a_run_killed_outright_resumes_to_the_same_model(
    tmp_path: Path, tiny_photos: Path, random_weights: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It kills itself in its fourth step; there has been a checkpoint since the first."""
    out = tmp_path / "killed"
    options = ["--epochs", "2", "--size", "64", "--batch", "4", "--prompts", "4", "--weights", str(random_weights)]
    words = [str(tiny_photos), "--out", str(out), *options, "--threads", str(torch.get_num_threads())]
    script = (
        "import os, signal, sys\nfrom train import trainer\ntrainer.CHECKPOINT_SECONDS = 0.0\n"
        "step, taken = trainer.Trainer._step, []\n"
        "def dying(self, *rest):\n"
        "    taken.append(1)\n"
        "    if len(taken) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, *rest)\n"
        "trainer.Trainer._step = dying\n"
        "from train.commands.run import main\nsys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=Path(trainer.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(words) == 0
    assert "recover: resuming at step" in capsys.readouterr().err
    assert_same(unbroken, out)


def test_self_trained_features_need_no_weights(tmp_path: Path, tiny_photos: Path) -> None:
    out = RunFolder(tmp_path / "self")
    train(out, config(tiny_photos, Path("self"), epochs=1))
    assert out.finished
    assert out.read_json("run.json")["provenance"]["backbone_weights"] == "learnt on the training images"


def test_a_time_budget_is_turned_into_steps(
    tmp_path: Path, tiny_photos: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second passes whenever the time is asked for, which a step does a few times: a minute is soon over.
    asked = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + next(asked))
    monkeypatch.setattr(trainer, "time", clock)
    out = RunFolder(tmp_path / "timed")
    train(out, config(tiny_photos, random_weights, epochs=None, minutes=1))
    phases = out.read_json("run.json")["phases"]
    assert 3 < phases["recover"]["steps"] < 40
    assert 3 < phases["discriminate"]["steps"] < 40


def test_resuming_with_other_settings_is_refused(tiny_photos: Path, random_weights: Path, unbroken: Path) -> None:
    with pytest.raises(TrainingError, match="seed=0, not 5"):
        train(RunFolder(unbroken), config(tiny_photos, random_weights, seed=5))


def test_an_attempt_that_learnt_nothing_binds_nobody_to_its_settings(
    tmp_path: Path, tiny_photos: Path, random_weights: Path
) -> None:
    out = RunFolder(tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.png").touch()
    # The weights come first: reading the images may take minutes.
    with pytest.raises(DataError, match="no such weights file"):
        train(out, config(empty, tmp_path / "mistyped.pth"))
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        train(out, config(empty, random_weights))
    right = config(tiny_photos, random_weights)
    out.begin(right)
    assert out.config() == right


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path, tiny_photos: Path, random_weights: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(TrainingError, match="not empty"):
        train(RunFolder(tmp_path), config(tiny_photos, random_weights))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path, tiny_photos: Path, random_weights: Path) -> None:
    out = RunFolder(tmp_path / "run")
    out.begin(config(tiny_photos, random_weights))
    (out.path / "checkpoint.pt").write_bytes(b"\x00" * 100)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: damaged"):
        train(out, config(tiny_photos, random_weights))


def test_one_image_is_too_few(tmp_path: Path, tiny_photos: Path, random_weights: Path) -> None:
    single = tmp_path / "single"
    single.mkdir()
    (single / "a.png").write_bytes((tiny_photos / "good0.png").read_bytes())
    with pytest.raises(DataError, match="1 readable training image"):
        train(RunFolder(tmp_path / "run"), config(single, random_weights))


def test_training_in_bf16_learns_too(tmp_path: Path, tiny_photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, losses = trainer.Trainer._step, defaultdict[str, list[float]](list)

    def recorded(self: trainer.Trainer, phase: trainer.Phase, *rest: object) -> list[float]:
        values = step(self, phase, *rest)  # type: ignore[arg-type]
        losses[phase.name].append(values[-1])
        return values

    monkeypatch.setattr(trainer, "mixed_precision", lambda device: torch.bfloat16)
    monkeypatch.setattr(trainer.Trainer, "_step", recorded)
    train(RunFolder(tmp_path / "run"), config(tiny_photos, Path("self"), epochs=4))
    assert list(losses) == ["self-training", "recover", "discriminate"]
    for name, values in losses.items():
        assert np.mean(values[-3:]) < 0.9 * values[0], name
    assert all(bool(torch.isfinite(value).all()) for value in weights_of(tmp_path / "run").values())


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path, tiny_photos: Path, random_weights: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TrainingError, match="no CUDA GPU"):
        train(RunFolder(tmp_path / "run"), config(tiny_photos, random_weights), "cuda")
