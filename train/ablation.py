"""The ablation grid: ReDi with single parts left out or exchanged, trained and scored in the same way.

A training is one data set, one variant and one seed, in processes of its own (`train.sweepjob`): one that fails, or is
killed for its memory, costs the grid nothing else.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import EdgeError, UsageError
from train.commands.run import parser as train_run_parser
from train.commands.run import run_settings
from train.redi.phases import DiscriminatePhase, RecoverPhase
from train.runfolder import RunFolder
from train.selftrain import SelfPhase
from train.sweep import Job
from train.sweepjob import Outcome, execute, finished
from train.trainer import Phase

#: Variants by name, each with what it changes as arguments of `train-run`: everything once, by itself.
DEFAULT_GRID: dict[str, list[str]] = {
    "full": [],
    "map: canny": ["--map", "canny"],
    "map: lbp": ["--map", "lbp"],
    "map: low-pass": ["--map", "lowpass"],
    "prompt: nearest by features": ["--prompt", "nearest-features"],
    "prompt: random": ["--prompt", "random"],
    "prompt: fixed": ["--prompt", "fixed"],
    "no prompt": ["--prompt", "none"],
    "no L_S": ["--correlation-weight", "0"],
    "no FRB": ["--no-frb"],
    "no density": ["--density-weight", "0"],
    "no expected distance": ["--no-expected"],
    "no level": ["--no-level"],
    "no memory": ["--memory", "0"],
    "no drawn defects": ["--no-drawn"],
    "no turned copies": ["--turned", "none"],
    "altered copies": ["--altered"],
}

#: Arguments of `train-run` that say where and how it runs, not what comes out.
_WHERE = {"out", "device", "threads", "restart"}

#: Arguments that the FRB does not depend on, those that recover does not either, and those that features learnt with
#: `--weights self` do not.
_AFTER_FRB = {"density_weight", "no_expected", "no_level", "memory", "no_drawn"}
_AFTER_RECOVER = {"correlation_weight", "coarse", "no_evidence", "no_frb", *_AFTER_FRB}
_AFTER_PHI = {"map", "prompt", "prompts", "turned", "altered", *_AFTER_RECOVER}

#: The phases that train these parts.
_PHASES: dict[str, type[Phase]] = {"recover": RecoverPhase, "frb": DiscriminatePhase}

#: In a run's folder: what it took over from another, where it did.
REUSED = "reused.json"


@dataclass(frozen=True)
class Training:
    """One variant on one data set with one seed."""

    variant: str
    job: Job

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.job.product}, {self.variant}, seed {self.job.seed}"

    def settings(self) -> dict[str, Any]:
        """Return what decides the outcome, as `train-run` takes it."""
        args = vars(train_run_parser().parse_args(list(self.job.train)))
        return {name: value for name, value in args.items() if name not in _WHERE}

    @property
    def reused(self) -> list[str]:
        """What it took over from another run of the grid: `phi`, `recover`, `frb`."""
        folder = RunFolder(self.job.folder)
        return list(folder.read_json(REUSED)["parts"]) if (folder.path / REUSED).is_file() else []


@dataclass(frozen=True)
class Trained:
    """A training and how it ended."""

    training: Training
    outcome: Outcome


def read_grid(choice: str) -> dict[str, list[str]]:
    """Return the variants of `default` or of a JSON file: an object of lists of `train-run` arguments by name.

    Raises:
        UsageError: no such file, or it is not that.
    """
    if choice == "default":
        return DEFAULT_GRID
    try:
        grid = msgspec.json.decode(Path(choice).read_bytes(), type=dict[str, list[str]])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--grid {choice}: {getattr(error, 'strerror', None) or error}",
            'give default, or a JSON file like {"full": [], "small bank": ["--prompts", "8"]}',
        ) from error
    slugs = [_slug(name) for name in grid]
    if not grid or "" in slugs or len(set(slugs)) < len(slugs):
        raise UsageError(f"--grid {choice}: needs variants whose names differ in letters or digits")
    return grid


def plan_trainings(
    out: Path,
    datasets: Mapping[str, Path],
    grid: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    common: Sequence[str],
    threads: int,
) -> list[Training]:
    """Return every training of the grid, one seed after the other, so that a first table is whole early.

    `datasets` are folders by name, `common` the arguments of `train-run` that all share.

    Raises:
        UsageError: a variant is not made of arguments that `train-run` takes.
    """
    trainings = []
    for seed in seeds:
        for dataset, data in datasets.items():
            for variant, words in grid.items():
                folder = Path(os.path.abspath(out)) / "runs" / dataset / _slug(variant) / f"seed{seed}"
                own = (f"--seed={seed}", f"--out={folder}", f"--threads={threads}")
                train = (os.path.abspath(data), *common, *words, *own)
                try:
                    args = train_run_parser().parse_args(train)
                except SystemExit:
                    raise UsageError(f"variant {variant!r}: train-run does not take {' '.join(words)}") from None
                chosen = (f"--layout={args.layout}", *([f"--category={args.category}"] if args.category else []))
                evaluate = (str(folder), args.data, "--json", *chosen)
                trainings.append(Training(variant, Job(dataset, seed, folder, train, evaluate, threads, Path.cwd())))
    return trainings


def run_trainings(
    trainings: Sequence[Training], started: Callable[[Training], None], done: Callable[[Trained], None]
) -> None:
    """Train and score in turn, calling `started` before and `done` after each; what is finished is kept.

    Raises:
        KeyboardInterrupt: stopped; the training that ran has written its checkpoint.
    """
    earlier: list[Training] = []
    for training in trainings:
        outcome = finished(training.job)
        if outcome is None:
            started(training)
            _take_over(training, earlier)
            outcome = execute(training.job)
        if outcome.state == "interrupted":
            raise KeyboardInterrupt
        if outcome.state == "done":
            earlier.append(training)
        done(Trained(training, outcome))


def _take_over(training: Training, earlier: Sequence[Training]) -> None:
    """Give a training that has not begun what an earlier one computed from the same settings.

    Only where epochs are counted: in a timed run, time saved would be an advantage.
    """
    settings = training.settings()
    folder = RunFolder(training.job.folder)
    if settings["method"] != "redi" or settings["minutes"] is not None or folder.started:
        return
    learnt = settings["weights"] == "self"
    shared = ((_AFTER_FRB, ["phi", "recover", "frb"]), (_AFTER_RECOVER, ["phi", "recover"]), (_AFTER_PHI, ["phi"]))
    # With marks the FRB is trained beside discriminators, which no run keeps.
    for allowed, parts in shared if settings["coarse"] is None else shared[1:]:
        donor = next((one for one in earlier if _differing(settings, one.settings()) <= allowed), None)
        parts = parts if learnt else parts[1:]
        if donor is not None and parts:
            try:
                _give(RunFolder(donor.job.folder), folder, settings, parts)
            except (EdgeError, KeyError):
                # Whatever is wrong with the donor, this run can do without it.
                continue
            return


def _give(donor: RunFolder, folder: RunFolder, settings: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Begin a run in `folder` that has these parts of the finished run `donor` already."""
    backbone, model, run = donor.load("backbone.pth"), donor.load("model.pt"), donor.read_json("run.json")
    if backbone is None or model is None:
        raise KeyError("unfinished")
    phases = {phase.name: model["modules"][part] for part, phase in _PHASES.items() if part in parts}
    history = {name: value for name, value in run["phases"].items() if name in (SelfPhase.name, *phases)}
    chosen = donor.config()
    config = run_settings(argparse.Namespace(**settings), chosen.input, chosen.canvas)
    folder.begin(config)
    folder.save("backbone.pth", backbone)
    folder.save("checkpoint.pt", {"phase": "", "finished": phases, "history": history, "spent": 0.0})
    folder.write_json(REUSED, {"from": donor.path.parent.name, "parts": list(parts)})


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
