from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge.errors import UsageError
from train.ablation import DEFAULT_GRID, Trained, Training, plan_trainings, read_grid
from train.ablation_table import BEGIN, END, markdown, split_page, summarise, write_into, write_table
from train.sweep import Job
from train.sweepjob import Outcome


def outcome(dataset: str, variant: str, seed: int, image: float | None, error: str = "") -> Trained:
    folder = Path("runs") / dataset / variant / f"seed{seed}"
    training = Training(variant, Job(dataset, seed, folder, (dataset,), None, 1, Path()))
    metrics = None if error else {"image_auroc": image, "pixel_auroc": 0.5, "aupro_30": None}
    state = "failed" if error else "done"
    return Trained(training, Outcome(dataset, seed, str(folder), state, [], error=error, metrics=metrics))


OUTCOMES = [
    outcome("bottle", "full", 0, 0.991),
    outcome("bottle", "full", 1, 0.983),
    outcome("bottle", "no L_S", 0, 0.9),
    outcome("bottle", "no L_S", 1, None, "images.png: unreadable"),
    outcome("cookie", "full", 0, 0.7),
    outcome("cookie", "full", 1, 0.8),
    outcome("cookie", "no L_S", 0, 0.6),
    outcome("cookie", "no L_S", 1, 0.6),
]
GRID = {"full": [], "no L_S": ["--correlation-weight", "0"]}


def test_the_table_has_means_and_spreads_over_seeds() -> None:
    summary = summarise(OUTCOMES, GRID, [0, 1], "train-ablate bottle cookie --out x")
    text = markdown(summary)
    assert text.startswith("    train-ablate bottle cookie --out x\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    head, full, without = rows
    assert head[:3] == ["variant", "bottle: image AUROC", "pixel AUROC"]
    spread = 100 * float(np.std([0.991, 0.983], ddof=1))
    assert full[1] == f"98.70 ± {spread:.2f}"
    assert full[2:4] == ["50.00 ± 0.00", "–"]
    assert without[0] == "no L_S (`--correlation-weight 0`)"
    assert without[1] == "90.00 (1 of 2)"
    assert full[7] == f"{(98.7 + 75) / 2:.2f}"
    assert "- bottle, no L_S, seed 1: images.png: unreadable" in text


def test_one_seed_has_no_spread_and_one_set_no_mean_of_sets() -> None:
    text = markdown(summarise([outcome("bottle", "full", 0, 1.0)], {"full": []}, [0], "x"))
    assert "±" not in text
    assert "all sets" not in text
    assert "| full | 100.00 | 50.00 | – |" in text


def test_the_table_takes_its_place_in_a_page_again_and_again(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\n{END}\n\nafter\n")
    for table in ("first\n", "second\n"):
        write_into(page, table)
        assert page.read_text() == f"# Title\n\n{BEGIN}\n{table}{END}\n\nafter\n"
    page.write_text("# Title\n")
    with pytest.raises(UsageError, match="no place for the table"):
        split_page(page)
    with pytest.raises(UsageError, match="No such file"):
        split_page(tmp_path / "none.md")


def test_json_and_markdown_say_the_same(tmp_path: Path) -> None:
    summary = summarise(OUTCOMES, GRID, [0, 1], "x")
    text = write_table(tmp_path, summary)
    assert (
        (tmp_path / "ablation.md").read_text() == text == markdown(json.loads((tmp_path / "ablation.json").read_text()))
    )


def plan(grid: dict[str, list[str]], seeds: list[int], common: list[str], *names: str) -> list[Training]:
    return plan_trainings(Path("out"), {name: Path(name) for name in names or ("a",)}, grid, seeds, common, 1)


def test_every_variant_of_the_default_grid_changes_one_thing() -> None:
    trainings = plan(DEFAULT_GRID, [0, 1], ["--epochs", "2"], "bottle", "cookie")
    assert len(trainings) == len(DEFAULT_GRID) * 4
    assert len({training.job.folder for training in trainings}) == len(trainings)
    full = trainings[0].settings()
    for training in trainings[1 : len(DEFAULT_GRID)]:
        settings = training.settings()
        assert len([name for name in full if settings[name] != full[name]]) == 1, training.variant
    assert read_grid("default") == DEFAULT_GRID


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"full": "x"}', '{"a b": [], "a-b": []}', '{"-": []}', '{"full": [1]}', "\xff"]
)
def test_a_senseless_grid_is_refused(text: str, tmp_path: Path) -> None:
    grid = tmp_path / "grid.json"
    grid.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"grid\.json"):
        read_grid(str(grid))


@pytest.mark.parametrize("words", [["--floppy"], ["--map", "sobel"], ["more"], ["--epochs"]])
def test_a_variant_that_train_run_does_not_take_is_named(words: list[str]) -> None:
    with pytest.raises(UsageError, match="odd"):
        plan({"odd": words}, [0], ["--epochs", "2"])


def test_the_grids_seeds_and_folders_win_over_a_variants() -> None:
    (training,) = plan({"Odd one": ["--seed", "9", "--out", "elsewhere"]}, [3], [])
    assert training.settings()["seed"] == 3
    assert training.job.folder == Path("out/runs/a/odd-one/seed3").absolute()
    assert f"--out={training.job.folder}" in training.job.train


def test_layout_and_category_reach_the_evaluation() -> None:
    (training,) = plan({"full": []}, [0], ["--layout", "visa", "--category", "candle"])
    assert training.job.evaluate is not None
    assert {"--layout=visa", "--category=candle", "--json"} <= set(training.job.evaluate)
