from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.errors import DataError, UsageError
from train.sweep import Product, as_arguments, expand, plan, read_spec
from train.sweepjob import Outcome, finished
from train.sweepsummary import write_summary


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def plant(tmp_path: Path) -> Path:
    """Two products in MVTec AD's layout, one of them with labelled test images."""
    root = tmp_path / "plant"
    for name in ("seal", "cap"):
        picture(root / name / "train" / "good" / "a.png")
    picture(root / "cap" / "test" / "good" / "b.png")
    picture(root / "cap" / "test" / "scratch" / "c.png")
    return root


def test_a_data_set_with_several_products_gives_all_of_them(plant: Path) -> None:
    assert expand(plant) == [Product("cap", plant / "cap"), Product("seal", plant / "seal")]
    assert expand(plant / "cap") == [Product("cap", plant / "cap")]
    assert expand(plant, ["--category=cap"]) == [Product("cap", plant, ("--category=cap",))]


def test_visa_gives_its_categories(tmp_path: Path) -> None:
    rows = ["object,split,label,image,mask"]
    for name in ("pcb1", "candle"):
        picture(tmp_path / name / "Data" / "Images" / "Normal" / "0.png")
        rows.append(f"{name},train,normal,{name}/Data/Images/Normal/0.png,")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    assert expand(tmp_path) == [Product(name, tmp_path, (f"--category={name}",)) for name in ("candle", "pcb1")]


def test_a_folder_that_is_not_there_is_left_to_its_own_run(tmp_path: Path) -> None:
    assert expand(tmp_path / "gone") == [Product("gone", tmp_path / "gone")]


def test_a_job_per_product_and_seed(plant: Path, tmp_path: Path) -> None:
    jobs = plan(expand(plant), [0, 7], tmp_path / "runs", ["--minutes=5"], threads=2)
    assert [(job.product, job.seed) for job in jobs] == [("cap", 0), ("cap", 7), ("seal", 0), ("seal", 7)]
    folder = tmp_path / "runs" / "cap" / "seed7"
    assert jobs[1].train == (str(plant / "cap"), f"--out={folder}", "--seed=7", "--minutes=5", "--threads=2")
    assert jobs[1].evaluate == (str(folder), str(plant / "cap"), "--json")
    assert jobs[2].evaluate is None
    assert jobs[1].log == tmp_path / "runs" / "cap" / "seed7.log"


def test_products_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two products are called 'good'"):
        plan([*expand(tmp_path / "a" / "good"), *expand(tmp_path / "b" / "good")], [0], tmp_path, [], 1)
    with pytest.raises(UsageError, match="cannot be a product's folder"):
        plan([Product("../up", tmp_path)], [0], tmp_path, [], 1)


def test_a_sweep_file(plant: Path) -> None:
    file = plant.parent / "plant.toml"
    file.write_text(
        "seeds = [3, 4]\n[options]\nminutes = 2.5\nno-frb = true\n"
        '[[product]]\ndata = "plant/seal"\nname = "gasket"\noptions = { size = "128x64", no-frb = false }\n'
        '[[product]]\ndata = "plant"\n'
    )
    products, seeds = read_spec(file)
    assert seeds == [3, 4]
    assert products == [
        Product("gasket", plant / "seal", ("--minutes=2.5", "--size=128x64")),
        Product("cap", plant / "cap", ("--minutes=2.5", "--no-frb")),
        Product("seal", plant / "seal", ("--minutes=2.5", "--no-frb")),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[[product]\n", "plant.toml"), ("seed = 1\n[[product]]\ndata='x'\n", "seed"), ("", "product")],
)
def test_a_damaged_sweep_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "plant.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_spec(file)
    with pytest.raises(DataError, match=r"gone\.toml: No such file"):
        read_spec(tmp_path / "gone.toml")


def test_options_become_arguments() -> None:
    options = {"epochs": 3, "no-frb": True, "restart": False, "weights": "-odd name.pth", "learning-rate": 1e-05}
    assert as_arguments(options) == ("--epochs=3", "--no-frb", "--weights=-odd name.pth", "--learning-rate=1e-05")


def test_only_the_very_same_run_counts_as_finished(plant: Path, tmp_path: Path) -> None:
    import msgspec

    job, changed = (plan(expand(plant / "cap"), [0], tmp_path, [f"--epochs={n}"], 1)[0] for n in (1, 2))
    job.folder.mkdir(parents=True)
    done = Outcome.of(job, "done", metrics={"image_auroc": 1.0})

    def record(outcome: Outcome) -> None:
        job.record.write_bytes(msgspec.json.encode(outcome))

    assert finished(job) is None
    record(done)
    assert finished(job) is None, "the model is missing"
    (job.folder / "model.pt").touch()
    assert finished(job) == done
    assert finished(changed) is None
    record(Outcome.of(job, "done"))
    assert finished(job) is None, "it has not been evaluated"
    job.record.write_text("{")
    assert finished(job) is None


def test_the_summary_has_means_spreads_and_failures(plant: Path, tmp_path: Path) -> None:
    jobs = plan(expand(plant), [0, 1], tmp_path, [], 1)
    outcomes = [
        Outcome.of(jobs[0], "done", metrics={"image_auroc": 0.9, "pixel_auroc": None}),
        Outcome.of(jobs[1], "done", metrics={"image_auroc": 1.0, "pixel_auroc": None}),
        Outcome.of(jobs[2], "failed", "no images", exit_code=7),
        Outcome.of(jobs[3], "waiting"),
    ]
    write_summary(tmp_path / "out", outcomes)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"] == {"done": 2, "failed": 1, "interrupted": 0, "waiting": 1}
    cell = summary["products"]["cap"]["image_auroc"]
    assert cell["mean"] == pytest.approx(0.95)
    assert cell["spread"] == pytest.approx(np.std([0.9, 1.0], ddof=1))
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| cap | 2 | 0.9500 ± 0.0707 | — | — | — |" in text
    assert "- seal, seed 0 (exit code 7): no images" in text
