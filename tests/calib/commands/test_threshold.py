from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calib.commands.threshold import main
from edge.bundle import Bundle, set_calibration
from edge.keys import Kind, generate
from edge.manifest import Lens
from edge.signing import sign_bundle
from tests.tiny_bundle import TinyBundle

IMAGES = 24


@pytest.fixture
def plan(tiny: TinyBundle, tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny.path, tmp_path / "redi.plan"))


@pytest.fixture(scope="module")
def photographs(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for index in range(IMAGES):
        cv2.imwrite(str(folder / f"part{index}.png"), tiny.product.good(100 + index))
    return folder


@pytest.fixture
def good(photographs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "good"))


def test_the_bundle_gets_its_rule_and_a_picture(plan, good, tiny, capsys):
    with Bundle.open(plan) as bundle:
        identity, old = bundle.bundle_id, bundle.calibration
    assert main([str(plan), "--good", str(good), "--false-reject", "0.01"]) == 0
    captured = capsys.readouterr()
    with Bundle.open(plan) as bundle:
        rule = bundle.calibration
        assert bundle.bundle_id == identity
    assert rule != old
    assert rule.images == IMAGES
    assert rule.method == "tolerance"
    # The oracle of the tiny bundle computes in float64, by other code.
    expected = [tiny.score(tiny.product.good(100 + index))[0] for index in range(IMAGES)]
    assert rule.good_max == pytest.approx(max(expected), rel=2e-3)
    assert rule.good_mean == pytest.approx(np.mean(expected), rel=2e-3)
    assert rule.threshold >= rule.good_max
    assert 0 < rule.pixel_threshold <= rule.threshold
    assert tiny.score(tiny.product.defective(0))[0] > rule.threshold
    for part in ("at most 0.01 of good parts", f"{rule.threshold:.6g}", f"{rule.pixel_threshold:.6g}"):
        assert part in captured.out
    picture = plan.with_name("redi.plan.calibration.png")
    assert cv2.imread(str(picture)) is not None
    assert sorted(path.name for path in plan.parent.iterdir()) == ["good", "redi.plan", picture.name]


def test_images_that_the_model_was_trained_on_are_left_out(tiny, good, tmp_path, capsys):
    from tests.tiny_bundle import write_tiny_bundle

    trained = [tiny.product.good(100 + index) for index in range(3)]
    plan = write_tiny_bundle(tmp_path / "trained.plan", trained=trained).path
    assert main([str(plan), "--good", str(good), "--false-reject", "0.01", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["images"] == IMAGES - 3
    assert sorted(Path(name).name for name in record["trained"]) == ["part0.png", "part1.png", "part2.png"]


def test_json_names_what_was_left_out(plan, good, tmp_path, capsys):
    shutil.copy(good / "part3.png", good / "part3 copy.png")
    cv2.imwrite(str(good / "part4 as bmp.bmp"), cv2.imread(str(good / "part4.png")))
    (good / "broken.png").write_bytes((good / "part5.png").read_bytes()[:200])
    plot = tmp_path / "x.png"
    arguments = [str(plan), "--good", str(good), "--false-reject", "0.01", "--json", "--plot", str(plot)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert record["images"] == IMAGES
    assert [Path(entry["path"]).name for entry in record["skipped"]] == ["broken.png"]
    assert len(record["duplicates"]) == 2
    assert record["plot"] == str(plot)
    assert plot.exists()


def test_pixel_size_and_smallest_region_stay_until_said_otherwise(plan, good):
    asked = [str(plan), "--good", str(good), "--false-reject", "0.01"]
    for extra, expected in (
        ([], (0, 0.5)),
        (["--pixel-size-mm", "0.1", "--min-region-px", "9"], (9, 0.1)),
        ([], (9, 0.1)),
        (["--min-region-px", "0"], (0, 0.1)),
    ):
        assert main(asked + extra) == 0
        with Bundle.open(plan) as bundle:
            assert (bundle.calibration.min_region_px, bundle.calibration.pixel_size_mm) == expected


def test_too_few_images_change_nothing(plan, good, capsys):
    before = plan.read_bytes()
    assert main([str(plan), "--good", str(good)]) == 8
    assert "needs 50" in capsys.readouterr().err
    assert main([str(plan), "--good", str(good), "--method", "order"]) == 8
    assert "2995" in capsys.readouterr().err
    assert plan.read_bytes() == before
    assert not plan.with_name("redi.plan.calibration.png").exists()


def test_a_good_image_that_cannot_be_scored_is_named(plan, good, tiny, capsys):
    cv2.imwrite(str(good / "dark.png"), tiny.product.dark())
    before = plan.read_bytes()
    assert main([str(plan), "--good", str(good), "--false-reject", "0.01"]) == 8
    assert "dark.png" in capsys.readouterr().err
    assert plan.read_bytes() == before


def test_a_defective_part_among_the_good_ones_is_named(plan, good, tiny, capsys):
    cv2.imwrite(str(good / "oops.png"), tiny.product.defective(1))
    assert main([str(plan), "--good", str(good), "--false-reject", "0.01"]) == 0
    assert "oops.png" in capsys.readouterr().err
    with Bundle.open(plan) as bundle:
        assert bundle.calibration.threshold < tiny.score(tiny.product.defective(1))[0]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--good", "{tmp}/none"], 7),
        (["--good", "{tmp}/empty"], 7),
        (["--good", "{good}", "--plot", "{tmp}/x.jpg"], 2),
        (["--good", "{good}", "--plot", "{tmp}/none/x.png"], 2),
    ],
)
def test_folders_and_pictures_that_cannot_be(plan, good, tmp_path, capsys, arguments, code):
    (tmp_path / "empty").mkdir()
    filled = [part.format(tmp=tmp_path, good=good) for part in arguments]
    assert main([str(plan), *filled]) == code
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ("--false-reject", "0"),
        ("--false-reject", "1.5"),
        ("--false-reject", "nan"),
        ("--false-reject", "1%"),
        ("--confidence", "95"),
        ("--pixel-rate", "0.5"),
        ("--pixel-size-mm", "-1"),
        ("--min-region-px", "-1"),
        ("--min-region-px", "1.5"),
        ("--method", "guess"),
    ],
)
def test_options_out_of_range(plan, good, option, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(plan), "--good", str(good), *option])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert option[0] in err
    assert "invalid _" not in err


def test_no_bundle(tmp_path, good, capsys):
    assert main([str(tmp_path / "none.plan"), "--good", str(good)]) == 3
    assert "no such file" in capsys.readouterr().err


def test_a_model_exported_meanwhile_is_not_given_this_threshold(plan, good, monkeypatch, tiny):
    # What the file holds when the scores are there is not what they were made with.
    def replaced(path, calibration, *, bundle_id, flat_field):
        set_calibration(path, calibration, bundle_id="0" * 16)

    before = plan.read_bytes()
    monkeypatch.setattr("calib.commands.threshold.set_calibration", replaced)
    assert main([str(plan), "--good", str(good), "--false-reject", "0.01"]) == 3
    assert plan.read_bytes() == before


def test_help_lists_methods_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes" in text
    assert "tolerance" in text


def test_a_signed_bundle_loses_its_signature_and_says_so(plan, good, capsys):
    sign_bundle(plan, generate(Kind.SIGN, "release"))
    assert main([str(plan), "--good", str(good), "--false-reject", "0.01"]) == 0
    assert f"edge-bundle sign {plan}" in capsys.readouterr().err.replace("\n", "")
    with Bundle.open(plan) as bundle:
        assert bundle.signature is None


def test_region_of_interest_and_flat_field_are_obeyed_and_kept(plan, good, photographs, tiny, tmp_path):
    """Photographs of a dimly lit line, of which the model was shown one part, evenly lit."""
    light = np.repeat([1, 0.5], [48, 48])[None, :, None]
    for path in good.iterdir():
        frame = np.full((120, 130, 3), 99, np.uint8)
        frame[25:105, 20:116] = np.rint(cv2.imread(str(path)) * light)
        cv2.imwrite(str(path), frame)
    grey = tmp_path / "grey"
    grey.mkdir()
    surface = np.full((120, 130), 200, np.uint8)
    surface[:, 20 + 48 : 20 + 96] = 100
    cv2.imwrite(str(grey / "surface.png"), surface)
    command = [str(plan), "--good", str(good), "--false-reject", "0.01"]
    assert main([*command, "--roi", "20,25,96,80", "--flat-field", str(grey)]) == 0
    with Bundle.open(plan) as bundle:
        first = bundle.calibration
    assert first.roi == (20, 25, 96, 80)
    assert len(first.flat_field) == 64
    expected = [tiny.score(tiny.product.good(100 + index))[0] for index in range(IMAGES)]
    # Half the light shows half as many grey levels.
    assert first.good_mean == pytest.approx(np.mean(expected), rel=0.05)
    assert main(command) == 0
    with Bundle.open(plan) as bundle:
        assert (bundle.calibration.roi, bundle.calibration.flat_field) == (first.roi, first.flat_field)
        assert bundle.calibration.good_mean == first.good_mean
    plain = [str(plan), "--good", str(photographs), "--false-reject", "0.01", "--roi", "none", "--flat-field", "none"]
    assert main(plain) == 0
    with Bundle.open(plan) as bundle:
        assert (bundle.calibration.roi, bundle.calibration.flat_field) == (None, "")
        assert bundle.calibration.good_mean == pytest.approx(np.mean(expected), rel=2e-3)


@pytest.mark.parametrize("roi", ["1,2,3", "1,2,0,4", "-1,2,3,4", "1,2,3,4,5", "all", "", "1.5,2,3,4"])
def test_a_region_of_interest_that_is_none(plan, good, roi, capsys):
    with pytest.raises(SystemExit):
        main([str(plan), "--good", str(good), f"--roi={roi}"])
    assert "X,Y,WIDTH,HEIGHT" in capsys.readouterr().err


def test_a_lens_is_stored_kept_and_taken_away(plan, good):
    command = [str(plan), "--good", str(good), "--false-reject", "0.01"]
    assert main([*command, "--lens", "5000,5000,48,40,-0.2"]) == 0
    assert main(command) == 0
    with Bundle.open(plan) as bundle:
        assert bundle.calibration.lens == Lens(5000.0, 5000.0, 48.0, 40.0, -0.2)
    assert main([*command, "--lens", "none"]) == 0
    with Bundle.open(plan) as bundle:
        assert bundle.calibration.lens is None


@pytest.mark.parametrize("lens", ["1,2,3", "0,1,2,3", "1,1,2,x", "1,1,2,3,4,5,6,7,8,9", "1,1,inf,3", ""])
def test_a_lens_that_is_none(plan, good, lens, capsys):
    with pytest.raises(SystemExit):
        main([str(plan), "--good", str(good), f"--lens={lens}"])
    assert "FX,FY,CX,CY" in capsys.readouterr().err
