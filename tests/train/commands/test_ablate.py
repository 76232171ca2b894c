"""The grid as a user runs it: one training that fails, the same command again, and Ctrl-C."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from edge.commands.sim import main as simulate
from train import sweepjob
from train.ablation_table import BEGIN, END
from train.commands.ablate import common_words, parser
from train.commands.ablate import main as ablate
from train.commands.run import main as run
from train.commands.run import settings_parser
from train.runfolder import RunFolder
from train.trained import load_trained

COMMON = ["--seeds", "0", "--epochs", "1", "--size", "64", "--batch", "4", "--threads", "1", "--turned", "none"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sim") / "parts"
    sizes = ["--width", "64", "--height", "64"]
    assert simulate([str(folder), "--train", "8", "--test", "4", "--good", "0", *sizes]) == 0
    return folder


def in_this_process(
    module: str, arguments: Sequence[str], job: object, log: int, stdout: int | None = None
) -> tuple[int, bytes]:
    """Stand in for a process of the grid, which would import torch anew: the same command, log and exit code."""
    told, printed = io.StringIO(), io.StringIO()
    with redirect_stderr(told), redirect_stdout(printed):
        code: int = importlib.import_module(module).main(list(arguments))
    os.write(log, told.getvalue().encode())
    return code, printed.getvalue().encode()


def test_a_grid_survives_a_failing_variant_resumes_and_takes_over_what_is_the_same(
    data: Path,
    random_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweepjob, "_child", in_this_process)
    monkeypatch.setenv("COLUMNS", "200")
    weights = tmp_path / "late.pth"
    grid, page, out = tmp_path / "grid.json", tmp_path / "page.md", tmp_path / "out"
    variants = {
        "broken": ["--weights", str(weights)],
        "full": [],
        "no L_S": ["--correlation-weight", "0"],
        "no density": ["--density-weight", "0"],
        "marked": ["--coarse", str(data / "test" / "scratch")],
    }
    grid.write_text(json.dumps(variants))
    page.write_text(f"# Page\n{BEGIN}\n{END}\n")
    words = [str(data), "--out", str(out), "--grid", str(grid), "--into", str(page), *COMMON]
    words += ["--weights", str(random_weights)]

    assert ablate(words) == 10
    error = capsys.readouterr().err
    assert "1 of 5 trainings failed" in error
    assert "broken" in error
    assert "late.pth: no such weights file" in (out / "ablation.md").read_text()
    first = json.loads((out / "ablation.json").read_text())
    results = {variant["name"]: variant["results"]["parts"] for variant in first["variants"]}
    assert results["broken"]["figures"]["image_auroc"]["mean"] is None
    assert results["full"]["figures"]["image_auroc"]["seeds"] == 1
    assert results["no L_S"]["runs"][0]["taken_over"] == ["recover"]
    assert results["no density"]["runs"][0]["taken_over"] == ["recover", "frb"]
    assert results["marked"]["runs"][0]["taken_over"] == ["recover"]
    assert page.read_text() == f"# Page\n{BEGIN}\n{(out / 'ablation.md').read_text()}{END}\n"
    assert first["command"].startswith("train-ablate ")

    # What was taken over is what the variant's own training would have made.
    for slug, name in (("no-l-s", "no L_S"), ("no-density", "no density"), ("marked", "marked")):
        alone = tmp_path / "alone" / slug
        same = [*COMMON[2:], "--weights", str(random_weights), *variants[name]]
        assert run([str(data), "--out", str(alone), *same]) == 0
        one, two = (load_trained(RunFolder(path)) for path in (alone, out / "runs" / "parts" / slug / "seed0"))
        assert one.config == two.config
        for (part, a), b in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda m, n=part: f"{n}: {m}")

    # The same command again tries what failed, and that alone.
    weights.write_bytes(random_weights.read_bytes())
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("model.pt")}
    assert len(stamps) == 4
    assert ablate(words) == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    text = (out / "ablation.md").read_text()
    assert "Failed" not in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 6


@pytest.mark.slow
def test_ctrl_c_stops_the_training_too_after_a_checkpoint(
    data: Path, random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training is a real process, which writes a checkpoint after its first step: from then on it can resume."""
    (tmp_path / "often.py").write_text(
        "from train import trainer\ntrainer.CHECKPOINT_SECONDS = 0.0\nfrom train.commands.run import main as main\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(sweepjob.__file__).parents[1])]))
    child = sweepjob._child
    monkeypatch.setattr(sweepjob, "_child", lambda module, *rest: child("often", *rest))
    out = tmp_path / "out"
    run_folder = out / "runs" / "parts" / "full" / "seed0"
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(0.05):
            if (run_folder / "checkpoint.pt").exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    (tmp_path / "grid.json").write_text('{"full": []}')
    words = [str(data), "--out", str(out), *COMMON, "--epochs", "400", "--weights", str(random_weights)]
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert ablate([*words, "--grid", str(tmp_path / "grid.json")]) == 130
    finally:
        over.set()
        thread.join()
    assert "the same command resumes here" in run_folder.with_name("seed0.log").read_text()
    saved = RunFolder(run_folder).load("checkpoint.pt")
    assert saved is not None
    assert saved["step"] > 0


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["missing", "--out", "OUT"], 7, "missing"),
        (["DATA", "--out", "OUT", "--grid", "nowhere.json"], 2, "nowhere.json"),
        (["DATA", "--out", "OUT", "--into", "nowhere.md"], 2, "nowhere.md"),
        (["DATA", "DATA", "--out", "OUT"], 2, "a second data set called parts"),
        (["DATA/train/good", "--out", "OUT"], 2, "no test images"),
    ],
)
def test_senseless_requests_end_with_one_line_and_a_code(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str
) -> None:
    words = [word.replace("DATA", str(data)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert ablate(words) == code
    error = capsys.readouterr().err
    assert text in error.replace("\n", " ")
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--threads", "2"],
        ["--no-frb", "--minutes", "2.5", "--size", "96x64", "--weights", "a b.pth", "--map", "lbp", "--layers", "2,3"],
    ],
)
def test_what_is_said_of_all_trainings_reaches_train_run(words: list[str]) -> None:
    args = parser().parse_args(["data", "--out", "out", *words])
    again = settings_parser().parse_args(common_words(args))
    expected = settings_parser().parse_args(words)
    assert {**vars(again), "threads": None} == {**vars(expected), "threads": None}


@pytest.mark.parametrize("text", ["", "0,0", "0,-1", "a"])
def test_seeds_are_different_whole_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ablate(["data", "--out", "out", "--seeds", text])
    assert "--seeds" in capsys.readouterr().err
