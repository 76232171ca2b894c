from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from edge.errors import UsageError
from tests.benchmarks.accuracy import marks, pairs, peers, splits, transfer
from tests.benchmarks.accuracy.rows import COLUMNS, Row, read_rows, write_row
from tests.benchmarks.accuracy.run import main
from train.ablation import read_grid
from train.backbones import ResNet18, backbone_from_state, fold_batch_norm
from train.datasets import load_mask, open_dataset
from train.evaluate import evaluate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of MVTec AD's layout: grey noise, a white square for a defect."""
    root = tmp_path_factory.mktemp("data") / "cap"
    rng = np.random.default_rng(0)
    for folder, count in (("train/good", 4), ("test/good", 3), ("test/spot", 5)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(90, 110, (80, 80, 3), dtype=np.uint8)
            if folder == "test/spot":
                image[20:40, 30:50] = 255
                mask = np.zeros((80, 80), np.uint8)
                mask[20:40, 30:50] = 255
                (root / "ground_truth/spot").mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / f"ground_truth/spot/{number}_mask.png"), mask)
            cv2.imwrite(str(root / folder / f"{number}.png"), image)
    return root


@pytest.fixture(scope="module")
def full_state() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 with batch norms that are anything but the identity."""
    torch.manual_seed(0)
    model = ResNet18(norm=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model.state_dict()


@pytest.fixture(scope="module")
def weights(full_state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(full_state, path)
    return path


def test_identity_norms_compute_what_the_folded_weights_do(full_state: dict[str, torch.Tensor]) -> None:
    folded = backbone_from_state(full_state, "test")
    network = ResNet18(norm=True).eval()
    transfer.load_folded(network, folded.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert transfer.largest_difference(network(x), folded(x)) < 1e-5


def test_folding_again_gives_the_folded_weights_back(full_state: dict[str, torch.Tensor]) -> None:
    folded = fold_batch_norm({k: v for k, v in full_state.items() if not k.endswith("tracked")})
    again = fold_batch_norm(transfer.identity_norm_state(folded))
    assert again.keys() == folded.keys()
    for name, value in folded.items():
        torch.testing.assert_close(again[name], value)


def test_other_weights_are_refused(full_state: dict[str, torch.Tensor]) -> None:
    folded = fold_batch_norm({k: v for k, v in full_state.items() if not k.endswith("tracked")})
    fewer = {name: value for name, value in folded.items() if not name.startswith("layer3")}
    with pytest.raises(ValueError, match="no layer3"):
        transfer.load_folded(ResNet18(norm=True), fewer)
    with pytest.raises(ValueError, match=r"conv1\.weight is"):
        transfer.load_folded(ResNet18(norm=True), folded | {"conv1.weight": torch.zeros(64, 3, 3, 3)})


def test_a_difference_is_relative_to_the_largest_feature_of_its_level() -> None:
    expected = [torch.tensor([100.0, -200.0]), torch.tensor([1.0, 0.5])]
    found = [torch.tensor([102.0, -200.0]), torch.tensor([1.0, 0.6])]
    assert transfer.largest_difference(found, expected) == pytest.approx(0.1)


def test_timm_takes_the_weights(full_state: dict[str, torch.Tensor]) -> None:
    timm = pytest.importorskip("timm")
    folded = backbone_from_state(full_state, "test")
    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 2, 3)).eval()
    transfer.load_folded(network, folded.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert transfer.largest_difference(network(x), folded(x)) < transfer.TOLERANCE


def test_what_the_peers_are_given_is_what_ours_see(data: Path, weights: Path, tmp_path: Path) -> None:
    split = splits.whole(data)
    assert peers.prepare(split, (64, 96), str(weights), tmp_path) == "resnet18"
    assert np.load(tmp_path / "train.npy").shape == (4, 3, 64, 96)
    assert np.load(tmp_path / "test.npy").shape == (8, 3, 64, 96)
    folded = backbone_from_state(torch.load(tmp_path / "weights.pth", weights_only=True), "test")
    with np.load(tmp_path / "reference.npz") as reference, torch.no_grad():
        levels = folded(torch.from_numpy(reference["x"]))
        for number, level in enumerate(levels, start=1):
            np.testing.assert_allclose(reference[f"layer{number}"], level.numpy(), atol=1e-5)


def test_stored_answers_are_scored_in_the_order_of_the_test_set(data: Path) -> None:
    split = splits.whole(data)
    maps = np.zeros((8, 80, 80), np.float32)
    scores = np.array([sample.label for sample in split.dataset.test], np.float32)
    maps[scores > 0, 20:40, 30:50] = 1.0
    found = evaluate(peers.StoredScorer(maps, scores), split.dataset, progress=False).metrics
    assert (found.image_auroc, found.pixel_auroc, found.aupro_30) == (1.0, 1.0, 1.0)


def test_marked_images_leave_the_test_set(data: Path, tmp_path: Path) -> None:
    split = splits.marked(data, "spot", 2, tmp_path / "split")
    assert split.coarse is not None
    taken = {path.name for path in (split.coarse / "spot").iterdir()}
    left = {sample.path.name for sample in split.dataset.test if sample.label}
    assert (len(taken), len(left)) == (2, 3)
    assert not taken & left
    assert all(sample.mask is not None for sample in split.dataset.test if sample.label)
    assert len(split.dataset.train) == 4


def test_fewer_marks_are_some_of_more_and_none_is_tested(data: Path, tmp_path: Path) -> None:
    assert marks.main([str(data), "spot", "--counts", "3,1", "--out", str(tmp_path / "m")]) == 0
    grid = read_grid(str(tmp_path / "m" / "grid.json"))
    assert list(grid) == ["no marks", "1 marked", "3 marked"]
    one, three = ({image.resolve() for image in Path(grid[name][1]).glob("*/*")} for name in ("1 marked", "3 marked"))
    assert len(one) == 1
    assert one < three
    tested = {sample.path.resolve() for sample in open_dataset(tmp_path / "m" / "cap").test}
    assert not tested & three
    assert len(tested) == 3 + 5 - 3


def test_several_kinds_are_marked_alike_though_their_images_have_the_same_names(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "cap")
    for folder in ("test", "ground_truth"):
        shutil.copytree(data / folder / "spot", tmp_path / "cap" / folder / "stain")
    words = [str(tmp_path / "cap"), "spot,stain", "--counts", "2,5", "--out", str(tmp_path / "m")]
    assert marks.main(words) == 0
    for count, shares in ((2, [1, 1]), (5, [2, 3])):
        part = tmp_path / "m" / f"marked-{count}"
        assert [len(list((part / kind).iterdir())) for kind in ("spot", "stain")] == shares
    assert len(open_dataset(tmp_path / "m" / "cap").test) == 3 + 10 - 5
    assert marks.main([*words[:3], "2,9", *words[4:]]) == 2


@pytest.mark.parametrize("counts", ["0", "5", "many"])
def test_a_senseless_number_of_marks_is_refused(counts: str, data: Path, tmp_path: Path) -> None:
    assert marks.main([str(data), "spot", "--counts", counts, "--out", str(tmp_path / "m")]) == 2


def test_pairs_become_a_data_set_whose_tested_boards_are_not_trained_on(tmp_path: Path) -> None:
    for folder in ("template", "test", "boxes"):
        (tmp_path / "pcb" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(9):
        for folder in ("template", "test"):
            image = rng.integers(0, 255, (64, 96), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "pcb" / folder / f"{number}.jpg"), image)
        (tmp_path / "pcb" / "boxes" / f"{number}.txt").write_text(f"{number} 2 40 9 1\n50 20 60 30 3\n")
    assert pairs.main([str(tmp_path / "pcb"), "--out", str(tmp_path / "made")]) == 0
    data = open_dataset(tmp_path / "made" / "deeppcb")
    assert {sample.path.stem for sample in data.train} == set("0124568")
    assert {(sample.path.stem, sample.label) for sample in data.test} == {("3", 0), ("3", 1), ("7", 0), ("7", 1)}
    defect = next(sample for sample in data.test if sample.path.stem == "7" and sample.label)
    mask = load_mask(defect, (64, 96))
    assert mask is not None
    wanted = np.zeros((64, 96), bool)
    wanted[2:10, 7:41] = wanted[20:31, 50:61] = True
    np.testing.assert_array_equal(mask, wanted)

    (tmp_path / "pcb" / "boxes" / "7.txt").write_text("1 2 three 4 5\n")
    assert pairs.main([str(tmp_path / "pcb"), "--out", str(tmp_path / "made")]) == 7


def test_marking_every_image_or_an_unknown_kind_is_refused(data: Path, tmp_path: Path) -> None:
    for kind, count in (("spot", 5), ("scratch", 1)):
        with pytest.raises(UsageError, match=kind):
            splits.marked(data, kind, count, tmp_path / "split")


def test_absent_peers_are_reported_and_known_rows_are_not_run_again(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data), "--weights", str(weights), "--methods", "padim,patchcore", "--seeds", "1", "--size", "64"]
    words += ["--out", str(tmp_path / "out"), "--environment", str(tmp_path / "nowhere")]
    assert main(words) == 0
    assert capsys.readouterr().out.count("has no result: the peers' environment is not set up") == 2
    padim, patchcore = read_rows(tmp_path / "out" / "rows")
    assert (padim.settings["method"], patchcore.settings["method"]) == ("padim", "patchcore")
    write_row(tmp_path / "out" / "rows", Row(padim.settings, dict.fromkeys(COLUMNS, 0.75)))
    assert main(words) == 0
    again = capsys.readouterr()
    assert "padim, seed 0: measured before" in again.err
    assert "patchcore, seed 0: measured before" not in again.err
    assert "75.00" in again.out
    assert again.out == (tmp_path / "out" / "table.md").read_text(encoding="utf-8") + "\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--methods", "magic"], "magic"),
        (["--methods", "redi+coarse"], "--coarse"),
        (["--variant", "fast"], "fast"),
        (["--coarse", "spot"], "KIND:N"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], named: str, data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(data), "--weights", str(weights), "--out", str(tmp_path), *words]) == 2
    assert named in capsys.readouterr().err
