from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.accuracy.rows import COLUMNS, Row, groups, read_row, read_rows, render, row_name, write_row
from tests.benchmarks.accuracy.rows import write_tables as write


def settings(method: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    family = "peer" if method in ("padim", "patchcore") else "ours"
    given = {"data": "cap", "split": "", "method": method, "family": family, "seed": seed}
    return given | {"size": "256×256", "budget": "1 minutes"} | more


def row(method: str, seed: int, value: float, **more: Any) -> Row:
    return Row(settings(method, seed, **more), dict.fromkeys(COLUMNS, value), details={"minutes": 2.0})


def table_line(text: str, method: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} ") and "points" not in line][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_comes_back_and_only_for_its_own_settings(tmp_path: Path) -> None:
    written = row("redi", 1, 0.5)
    write_row(tmp_path, written)
    assert read_row(tmp_path, written.settings) == written
    assert read_row(tmp_path, settings("redi", 2)) is None
    assert read_row(tmp_path, settings("redi", 1, budget="2 minutes")) is None
    assert read_rows(tmp_path) == [written]


def test_names_are_safe_and_differ_with_any_setting() -> None:
    base = settings("redi/384 a")
    names = {row_name(base), *(row_name(base | {key: "other"}) for key in base)}
    assert len(names) == len(base) + 1
    assert all("/" not in name and " " not in name for name in names)


def test_seeds_are_summed_up_as_mean_and_sample_deviation() -> None:
    (line,) = groups([row("redi", seed, value) for seed, value in enumerate((0.90, 0.94, 0.98))])["cap", ""]
    assert line["seeds"] == [0, 1, 2]
    assert line["metrics"]["aupro_5"] == pytest.approx({"mean": 0.94, "std": 0.04})


def test_another_budget_is_another_line() -> None:
    lines = groups([row("redi", 0, 0.9), row("redi", 0, 0.8, budget="9 minutes")])["cap", ""]
    assert len(lines) == 2


def test_the_table_shows_the_best_and_by_how_much_ours_loses() -> None:
    text = render([row("redi", 0, 0.90), row("padim", 0, 0.95), row("patchcore", 0, 0.93)])
    assert "**95.00**" in table_line(text, "padim (peer)")
    assert "90.00" in table_line(text, "redi")
    last = text.splitlines()[-1]
    assert last.startswith("| redi ")
    assert last.count("−5.00 (padim)") == len(COLUMNS)


def test_a_win_is_positive() -> None:
    assert "+2.00 (padim)" in render([row("redi", 0, 0.97), row("padim", 0, 0.95)])


def test_a_failure_is_shown_and_leaves_the_other_seeds_their_mean() -> None:
    failed = Row(settings("padim", 1), error="out of luck")
    text = render([row("redi", 0, 0.9), row("padim", 0, 0.5), failed])
    assert "padim, seed 1, has no result: out of luck" in text
    assert table_line(text, "padim (peer)")[1] == "1"


def test_a_method_without_any_result_stays_in_the_table() -> None:
    text = render([row("redi", 0, 0.9), Row(settings("padim"), error="absent")])
    assert table_line(text, "padim (peer)")[4:] == ["—"] * (len(COLUMNS) + 2)
    assert "points" not in text


def test_an_undefined_metric_is_a_dash() -> None:
    partial = Row(settings("redi"), dict.fromkeys(COLUMNS, None) | {"image_auroc": 1.0})
    assert table_line(render([partial]), "redi")[4:6] == ["**100.00**", "—"]


def test_splits_are_tables_of_their_own(tmp_path: Path) -> None:
    text = write(tmp_path, [row("redi", 0, 0.9), row("redi", 0, 0.8, split="5 marked")])
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## cap", "## cap, 5 marked"]
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == text
    found = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert [line["metrics"]["pixel_ap"]["mean"] for line in found] == [0.9, 0.8]
