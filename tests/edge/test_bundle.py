from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge.bundle import Bundle, set_calibration, update_bundle, write_bundle
from edge.errors import BundleError, BundleMismatchError
from edge.manifest import Calibration, EngineKey

CALIBRATION = Calibration(
    threshold=0.5,
    pixel_threshold=0.4,
    false_reject=0.001,
    false_reject_bound=0.03,
    confidence=0.95,
    images=100,
    method="tolerance",
    created="2026-01-01T00:00:00+00:00",
    good_mean=0.2,
    good_std=0.05,
    good_max=0.4,
)
ENGINE = EngineKey("tensorrt", "sm_87", "10.3", "fp16")


def leftovers(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir() if p.name != path.name]


def test_what_was_written_is_read(bundle_path, members, model):
    with Bundle.open(bundle_path) as bundle:
        assert bundle.manifest.model == model()
        assert bundle.manifest.provenance == {"seed": "7"}
        assert bundle.prompt_names == ("a.png", "b.png", "ü.png")
        assert bundle.calibration is None
        assert bundle.calibration_id == ""
        assert bundle.golden.frames[0].score == 0.25
        for name, data in members.items():
            if isinstance(data, bytes):
                assert bundle.read(name) == data
            else:
                array = bundle.array(name)
                assert array.dtype == data.dtype
                np.testing.assert_array_equal(array, data)
        expected = cv2.imdecode(np.frombuffer(members["golden/good 1.png"], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(bundle.golden_image("good 1"), expected)


def test_arrays_lie_aligned_read_only_in_the_map_and_outlive_the_bundle(bundle_path, members):
    bundle = Bundle.open(str(bundle_path))
    array = bundle.array("prompts/key.npy")
    view = bundle.read("core.onnx")
    bundle.close()
    bundle.close()
    assert array.ctypes.data % 64 == 0
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert view.readonly
    # An old inode lives on under its mapping: a station keeps what it opened.
    bundle_path.unlink()
    np.testing.assert_array_equal(array, members["prompts/key.npy"])
    assert view == members["core.onnx"]


def test_ordinary_tools_open_it(bundle_path, tmp_path, members):
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "-t", bundle_path], capture_output=True, text=True, check=True
    )
    assert "Done testing" in listing.stdout
    assert "warning" not in (listing.stdout + listing.stderr).lower()
    with zipfile.ZipFile(bundle_path) as archive:
        names = archive.namelist()
        assert names[0] == "manifest.json"
        assert set(names[1:]) == set(members)
        assert b'\n  "schema": 1' in archive.read("manifest.json")
        archive.extractall(tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out/prompts/key.npy"), members["prompts/key.npy"])


@pytest.mark.skipif(not Path("/usr/bin/unzip").exists(), reason="unzip is not installed")
def test_unzip_finds_no_fault(bundle_path):
    outcome = subprocess.run(["/usr/bin/unzip", "-tqq", bundle_path], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


def test_a_calibration_changes_nothing_else(bundle_path):
    with Bundle.open(bundle_path) as before:
        old = {name: bytes(before.read(name)) for name in before.members}
        identity = before.bundle_id
    set_calibration(bundle_path, CALIBRATION, bundle_id=identity)
    with Bundle.open(bundle_path) as bundle:
        assert bundle.calibration == CALIBRATION
        assert bundle.bundle_id == identity
        assert len(bundle.calibration_id) == 16
        first = bundle.calibration_id
        assert {name: bytes(bundle.read(name)) for name in old} == old
    set_calibration(bundle_path, msgspec.structs.replace(CALIBRATION, threshold=0.6))
    with Bundle.open(bundle_path) as bundle:
        assert bundle.calibration is not None
        assert bundle.calibration.threshold == 0.6
        assert bundle.calibration_id != first
    assert leftovers(bundle_path) == []


def test_an_open_bundle_keeps_what_it_opened_while_the_file_is_rewritten(bundle_path, members):
    with Bundle.open(bundle_path) as old:
        set_calibration(bundle_path, CALIBRATION)
        np.testing.assert_array_equal(old.array("prompts/value.npy"), members["prompts/value.npy"])
        assert "calibration.json" not in old.members


def test_a_calibration_for_a_replaced_model_is_refused(bundle_path, model, members):
    with Bundle.open(bundle_path) as bundle:
        identity = bundle.bundle_id
    write_bundle(bundle_path, model=model(backbone="resnet50"), members=members, provenance={})
    with pytest.raises(BundleMismatchError, match=identity):
        set_calibration(bundle_path, CALIBRATION, bundle_id=identity)
    with Bundle.open(bundle_path) as bundle:
        assert bundle.calibration is None


def test_engines_are_added_and_kept(bundle_path):
    with Bundle.open(bundle_path) as bundle:
        identity = bundle.bundle_id
    update_bundle(bundle_path, {"engines/a.engine": b"a"}, {"engines/a.engine": ENGINE})
    update_bundle(bundle_path, {"engines/b.engine": b""}, {"engines/b.engine": ENGINE})
    set_calibration(bundle_path, CALIBRATION)
    with Bundle.open(bundle_path) as bundle:
        assert bundle.manifest.engines == {"engines/a.engine": ENGINE, "engines/b.engine": ENGINE}
        assert (bundle.read("engines/a.engine"), bundle.read("engines/b.engine")) == (b"a", b"")
        assert bundle.bundle_id == identity


def test_an_engine_without_key_is_refused_and_the_old_file_stays(bundle_path):
    before = bundle_path.read_bytes()
    with pytest.raises(BundleError, match=r"engines/a\.engine has no engine key"):
        update_bundle(bundle_path, {"engines/a.engine": b"a"})
    assert bundle_path.read_bytes() == before
    assert leftovers(bundle_path) == []


def test_the_model_of_a_bundle_never_changes(bundle_path):
    with pytest.raises(ValueError, match=r"core\.onnx"):
        update_bundle(bundle_path, {"core.onnx": b"another"})


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"core.onnx": b"other"}, False), ({"golden/good 2.png": b"x"}, False)],
)
def test_bundle_id_follows_the_members(tmp_path, bundle_path, members, model, change, same):
    write_bundle(tmp_path / "b.plan", model=model(), members=members | change, provenance={"seed": "8"})
    with Bundle.open(bundle_path) as a, Bundle.open(tmp_path / "b.plan") as b:
        assert (a.bundle_id == b.bundle_id) is same


def test_bundle_id_follows_the_model(tmp_path, bundle_path, members, model):
    write_bundle(tmp_path / "b.plan", model=model(backbone="other"), members=members, provenance={"seed": "7"})
    with Bundle.open(bundle_path) as a, Bundle.open(tmp_path / "b.plan") as b:
        assert a.bundle_id != b.bundle_id


def test_mode_and_link_survive_an_update(bundle_path, tmp_path):
    bundle_path.chmod(0o640)
    link = tmp_path / "current.plan"
    link.symlink_to(bundle_path.name)
    set_calibration(link, CALIBRATION)
    assert link.is_symlink()
    assert stat.S_IMODE(bundle_path.stat().st_mode) == 0o640
    with Bundle.open(bundle_path) as bundle:
        assert bundle.calibration == CALIBRATION


def test_a_new_bundle_obeys_the_umask(tmp_path, members, model):
    old = os.umask(0o027)
    try:
        write_bundle(tmp_path / "a.plan", model=model(), members=members, provenance={})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.plan").stat().st_mode) == 0o640


def limited(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    text = f"import pathlib, resource, signal\npath = pathlib.Path({str(path)!r})\n{code}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=env, check=False)


def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle_path):
    before = bundle_path.read_bytes()
    # A limit on the file size stands in for a full disk: write() fails half-way just the same.
    outcome = limited(
        "from edge.bundle import update_bundle; from edge.errors import BundleError\n"
        "from edge.manifest import EngineKey\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try: update_bundle(path, {'engines/e': bytes(100_000)}, {'engines/e': EngineKey('a', 'b', 'c', 'd')})\n"
        "except BundleError as error: print(error)\n",
        bundle_path,
    )
    assert "cannot be written: File too large" in outcome.stdout, outcome.stderr
    assert bundle_path.read_bytes() == before
    assert leftovers(bundle_path) == []


def test_ctrl_c_leaves_the_old_bundle_and_nothing_else(bundle_path, monkeypatch):
    before = bundle_path.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        set_calibration(bundle_path, CALIBRATION)
    assert bundle_path.read_bytes() == before
    assert leftovers(bundle_path) == []


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path, members, model):
    with pytest.raises(BundleError, match="cannot be written: No such file"):
        write_bundle(tmp_path / "no/where.plan", model=model(), members=members, provenance={})


def test_what_is_not_a_file_is_never_replaced(tmp_path, members, model):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BundleError, match="not a regular file"):
        write_bundle(pipe, model=model(), members=members, provenance={})
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a//b", "a/./b", "c:x", "a\\b", "a\nb", "", "x" * 201])
def test_an_unsafe_member_name_is_not_written(tmp_path, members, model, name):
    with pytest.raises(BundleError, match="member name"):
        write_bundle(tmp_path / "a.plan", model=model(), members=members | {name: b""}, provenance={})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_member_is_named(bundle_path):
    with Bundle.open(bundle_path) as bundle, pytest.raises(BundleMismatchError, match="no member nothing"):
        bundle.read("nothing")


def test_array_of_what_is_none(bundle_path):
    with Bundle.open(bundle_path) as bundle, pytest.raises(BundleError, match=r"core\.onnx is no array"):
        bundle.array("core.onnx")


def test_golden_image_of_what_is_none(tmp_path, members, model):
    write_bundle(tmp_path / "a.plan", model=model(), members=members | {"golden/good 1.png": b"x"}, provenance={})
    with Bundle.open(tmp_path / "a.plan") as bundle, pytest.raises(BundleError, match=r"good 1\.png is not an image"):
        bundle.golden_image("good 1")


def test_a_model_without_prompts_needs_none(tmp_path, members, model):
    core = msgspec.structs.replace(model().core, uses_prompt=False, prompt_features={})
    kept = {name: data for name, data in members.items() if not name.startswith("prompts/")}
    write_bundle(tmp_path / "a.plan", model=model(core=core), members=kept, provenance={})
    with Bundle.open(tmp_path / "a.plan") as bundle:
        assert bundle.prompt_names == ()


def test_the_manifest_covers_every_member(bundle_path, members):
    with zipfile.ZipFile(bundle_path) as archive:
        assert set(json.loads(archive.read("manifest.json"))["members"]) == set(members)
