from __future__ import annotations

import json

import pytest

from edge.bundle import Bundle, set_calibration
from edge.commands.bundle import main
from edge.manifest import Calibration

RULE = Calibration(0.5, 0.4, 0.001, 0.03, 0.95, 100, "tolerance", "2026-01-01", 0.2, 0.05, 0.4, 7, 0.25)


def test_show_says_what_is_inside(bundle_path, capsys):
    assert main(["show", str(bundle_path)]) == 0
    text = capsys.readouterr().out
    with Bundle.open(bundle_path) as bundle:
        for word in (bundle.bundle_id, "resnet18", "64 x 32", "seed", "good 1", "not calibrated", *bundle.members):
            assert word in text
    set_calibration(bundle_path, RULE)
    assert main(["show", str(bundle_path)]) == 0
    text = capsys.readouterr().out
    for word in ("0.001 stated (tolerance), at most 0.03", "0.25 mm", "7 px"):
        assert word in text


def test_show_json_is_one_line(bundle_path, capsys):
    set_calibration(bundle_path, RULE)
    assert main(["show", "--json", str(bundle_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    record = json.loads(lines[0])
    assert record["calibration"]["threshold"] == 0.5
    assert record["manifest"]["model"]["input"]["width"] == 64
    assert record["golden"]["frames"][0]["name"] == "good 1"
    assert record["prompts"] == ["a.png", "b.png", "ü.png"]


def test_verify(bundle_path, capsys):
    assert main(["verify", str(bundle_path)]) == 0
    assert "whole (8 members" in capsys.readouterr().out
    data = bytearray(bundle_path.read_bytes())
    data[len(data) // 2] ^= 1
    bundle_path.write_bytes(data)
    assert main(["verify", str(bundle_path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("action", ["show", "verify"])
def test_a_missing_bundle(tmp_path, capsys, action):
    assert main([action, str(tmp_path / "none.plan")]) == 3
    assert "no such file" in capsys.readouterr().err


def test_unpack_writes_every_member(bundle_path, tmp_path):
    folder = tmp_path / "a" / "b"
    assert main(["unpack", str(bundle_path), str(folder)]) == 0
    with Bundle.open(bundle_path) as bundle:
        for name in ("manifest.json", *bundle.members):
            assert (folder / name).read_bytes() == bundle.read(name)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 8


def test_unpack_spares_a_folder_that_is_not_empty(bundle_path, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "core.onnx").write_text("mine")
    assert main(["unpack", str(bundle_path), str(folder)]) == 2
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["core.onnx"]
    assert main(["unpack", str(bundle_path), str(folder), "--force"]) == 0
    assert (folder / "core.onnx").read_text() != "mine"


def test_unpack_never_follows_a_link_out_of_the_folder(bundle_path, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    folder.mkdir()
    (folder / "prompts").symlink_to(outside)
    assert main(["unpack", str(bundle_path), str(folder), "--force"]) == 2
    assert list(outside.iterdir()) == []


def test_unpack_replaces_a_link_to_itself(bundle_path, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "core.onnx").symlink_to("core.onnx")
    assert main(["unpack", str(bundle_path), str(folder), "--force"]) == 0
    assert (folder / "core.onnx").is_file()


def test_unpack_into_a_file(bundle_path, tmp_path):
    (tmp_path / "file").touch()
    assert main(["unpack", str(bundle_path), str(tmp_path / "file")]) == 2
    assert main(["unpack", str(bundle_path), str(tmp_path / "file/x")]) == 1


def test_help_lists_the_exit_codes(capsys):
    for arguments in (["--help"], ["show", "--help"], ["unpack", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "exit codes" in capsys.readouterr().out
