"""Training over two real processes on this machine, started as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from train import trainer
from train.commands.run import main
from train.distributed import share, weight
from train.runfolder import RunFolder
from train.trained import load_trained

REPOSITORY = Path(trainer.__file__).parents[1]

Launch = Callable[..., "subprocess.Popen[str]"]

#: Runs train-run with frequent checkpoints; leaves its exit code behind, by rank.  With STOP_AT,
#: process 1 is interrupted as by Ctrl-C, in the middle of that step of the second stage; with DIE_AT, it is killed at
#: that step of the first.
ENTRY = """\
import os, signal, sys
from pathlib import Path
here, rank = Path(__file__).parent, os.environ.get("RANK", "0")
from train import trainer
trainer.CHECKPOINT_SECONDS = 0.0
step, taken = trainer.Trainer._step, []
def stopping(self, phase, *rest):
    taken.append(phase.name)
    if rank == "1" and taken.count("discriminate") == int(os.environ.get("STOP_AT", "-1")):
        os.kill(os.getpid(), signal.SIGINT)
    if rank == "1" and len(taken) == int(os.environ.get("DIE_AT", "-1")):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, phase, *rest)
trainer.Trainer._step = stopping
from train.commands.run import main
code = main()
(here / f"code{rank}").write_text(str(code))
sys.exit(code)
"""

#: Two processes go through everything that needs no training; each leaves its answers behind.
COLLECTIVES = """\
import copy, json, sys
from pathlib import Path
import numpy as np, torch
from torch.nn import functional as F
from edge.errors import DataError, EdgeError
from train.agreement import check_same, on_leader, together
from train.batchnorm import SharedBatchNorm2d, share_batch_norms
from train.config import TrainConfig
from train.distributed import *
from train.distributed import processes
from train.redi.recover import Residual, conv_norm

def said(work):
    try:
        return work()
    except EdgeError as error:
        return [type(error).__name__, error.problem.split(": ", 1)[-1] if rank() else error.problem]

def fail(where):
    if where is None or rank() == where:
        raise DataError(f"broken at {where}")

def run():
    torch.manual_seed(0)
    net = torch.nn.Sequential(conv_norm(3, 8), conv_norm(8, 8), Residual(8), torch.nn.Conv2d(8, 2, 1)).double().train()
    x, target = torch.randn(5, 3, 9, 7).double(), torch.randn(5, 2, 9, 7).double()
    alone = copy.deepcopy(net)
    F.mse_loss(alone(x), target).backward()
    share_batch_norms(net)
    # Process 1 starts elsewhere: it must be put right.
    if rank():
        with torch.no_grad():
            net[3].bias.add_(1)
    synchronise(net)
    mine, wanted = share(x, target)
    loss = F.mse_loss(net(mine), wanted)
    (loss * weight(5)).backward()
    reduce_gradients(net)
    return {
        "rows": len(mine),
        "norms": sum(isinstance(m, SharedBatchNorm2d) for m in net.modules()),
        "gradients": max(float((a.grad - b.grad).abs().max()) for a, b in zip(alone.parameters(), net.parameters())),
        "buffers": max(float((a - b).abs().max()) for a, b in zip(alone.buffers(), net.buffers())),
        "largest": max(float(p.grad.abs().max()) for p in alone.parameters()),
        "loss": abs(total(float(loss) * weight(5)) - float(F.mse_loss(alone(x), target))),
        "leader": on_leader(lambda: {"rank": rank(), "w": torch.arange(3)})["w"].tolist(),
        "leader failed": said(lambda: on_leader(lambda: fail(0))),
        "all failed": said(lambda: together(lambda: fail(None))),
        "one failed": said(lambda: together(lambda: fail(1))),
        "none failed": said(lambda: together(lambda: rank())),
        "same": said(lambda: check_same("a", "the images", "hint")),
        "differ": said(lambda: check_same(str(rank()), "the images", "hint")),
        "few": said(lambda: check_batch(1)),
    }

with processes("cpu"):
    answer = run()
    (Path(__file__).parent / f"answer{rank()}").write_text(json.dumps(answer))
"""


@pytest.fixture
def torchrun() -> Iterator[Launch]:
    """Start two processes of a script as torchrun does."""
    with ExitStack() as stack:
        yield lambda *given, **more: stack.enter_context(launched(*given, **more))


@contextmanager
def launched(script: Path, *arguments: object, stop_at: int = -1, die_at: int = -1) -> Iterator[subprocess.Popen[str]]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"STOP_AT": str(stop_at), "DIE_AT": str(die_at)}
    process = subprocess.Popen(
        [sys.executable, *launch, str(script), *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        # It ends its own processes.
        process.terminate()
        process.wait()


def options(photos: Path, weights: Path, out: Path, **changes: object) -> list[object]:
    # At the usual rate Adam makes steps of full size of gradients that are nothing but rounding: reversing the rows
    # of every batch in a single process already moves the FRB's weights by 3 %.
    given = {"epochs": 2, "size": 64, "batch": 5, "prompts": 4, "learning-rate": 1e-4, "threads": 1, **changes}
    return [photos, "--out", out, "--weights", weights, "--device", "cpu", *[f"--{k}={v}" for k, v in given.items()]]


def codes(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("code?"))]


def deviation(one: Path, two: Path, *names: str) -> float:
    """Norm of the difference of all parameters of these networks, relative to their norm."""

    def trained(folder: Path) -> torch.Tensor:
        learnt = load_trained(RunFolder(folder)).model.learnt
        parameters = ((name, p) for part in names for name, p in learnt[part].named_parameters())
        return torch.cat([p.detach().flatten() for name, p in parameters if not name.startswith("memory.nearest")])

    a, b = trained(one), trained(two)
    return float((a - b).norm() / a.norm())


def strangers(one: Path, two: Path) -> float:
    """Return how far the farthest of what one run remembers is from all that the other does, relative to its length.

    Which of two equally far places is chosen first is for rounding to say, and with it the order of all that follow.
    """

    def remembered(folder: Path) -> torch.Tensor:
        nearest = load_trained(RunFolder(folder)).model.learnt["statistics"].get_submodule("memory.nearest")
        return nearest.get_parameter("weight").detach()[:, :, 0, 0]

    distances = torch.cdist(remembered(one), remembered(two))
    return float(max(distances.min(0).values.max(), distances.min(1).values.max()) / remembered(one).norm(dim=1).mean())


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    script = tmp_path / "entry.py"
    script.write_text(ENTRY)
    return script


def test_alone_nothing_is_shared() -> None:
    rows, draws = torch.arange(5), torch.arange(10).view(5, 2)
    assert all(torch.equal(a, b) for a, b in zip(share(rows, draws), (rows, draws), strict=True))
    assert weight(5) == 1.0


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path, torchrun: Launch) -> None:
    script = tmp_path / "collectives.py"
    script.write_text(COLLECTIVES)
    process = torchrun(script)
    _, text = process.communicate(timeout=280)
    assert process.returncode == 0, text
    answers = [json.loads((tmp_path / f"answer{number}").read_text()) for number in (0, 1)]
    assert [answer["rows"] for answer in answers] == [2, 3]
    for number, answer in enumerate(answers):
        assert answer["norms"] == 4
        assert answer["largest"] > 0.01
        assert max(answer["gradients"], answer["buffers"], answer["loss"]) < 1e-12
        assert answer["leader"] == [0, 1, 2]
        assert answer["leader failed"] == ["DataError", "broken at 0"]
        assert answer["all failed"] == ["DataError", "broken at None"]
        assert answer["one failed"][0] == "DataError"
        assert answer["one failed"][1].endswith("broken at 1")
        assert answer["none failed"] == number
        assert answer["same"] is None
        assert answer["differ"][0] == answer["few"][0] == "TrainingError"
    assert "process 1" in answers[0]["one failed"][1]
    assert "the images differ: process 1" in answers[0]["differ"][1]


@pytest.mark.slow
def test_two_processes_stopped_by_ctrl_c_resume_to_the_model_of_one(
    tmp_path: Path, tiny_photos: Path, random_weights: Path, entry: Path, torchrun: Launch
) -> None:
    single, other, pair = (tmp_path / name for name in ("single", "other", "pair"))
    assert main([*map(str, options(tiny_photos, random_weights, single))]) == 0
    assert main([*map(str, options(tiny_photos, random_weights, other, seed=1))]) == 0
    process = torchrun(entry, *options(tiny_photos, random_weights, pair), stop_at=3)
    _, text = process.communicate(timeout=280)
    assert codes(tmp_path) == ["130", "130"], text
    assert text.count("stopped; the same command resumes here") == 1
    process = torchrun(entry, *options(tiny_photos, random_weights, pair))
    _, text = process.communicate(timeout=280)
    assert codes(tmp_path) == ["0", "0"], text
    assert "discriminate: resuming at step 3" in text
    assert text.count("trained on 10 images") == 1
    assert deviation(single, pair, "recover", "frb") < 0.01
    assert deviation(single, pair, "statistics") < 0.01
    assert strangers(single, pair) < 0.01
    assert strangers(single, other) < 0.01
    assert deviation(single, other, "recover", "frb") > 0.3


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_and_the_run_resumes(
    tmp_path: Path, tiny_photos: Path, random_weights: Path, entry: Path, torchrun: Launch
) -> None:
    out = tmp_path / "run"
    given = options(tiny_photos, random_weights, out, epochs=2)
    process = torchrun(entry, *given, die_at=3)
    _, text = process.communicate(timeout=280)
    assert codes(tmp_path) == ["10"], text
    assert "another process of this run was lost" in text
    assert "internal error" not in text
    # What two processes began, one may end.
    saved = RunFolder(out).load("checkpoint.pt")
    assert saved is not None
    assert saved["step"] > 0
    assert main([*map(str, given)]) == 0
    assert RunFolder(out).read_json("run.json")["phases"]["recover"]["steps"] == 4
