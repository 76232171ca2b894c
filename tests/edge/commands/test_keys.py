from __future__ import annotations

from pathlib import Path

import pytest

from edge.bundle import Bundle, set_calibration, update_bundle
from edge.commands.bundle import main as edge_bundle
from edge.commands.keys import main
from edge.keys import KeyFolder, Kind
from edge.manifest import Calibration

RULE = Calibration(0.5, 0.4, 0.001, 0.03, 0.95, 100, "tolerance", "2026-01-01", 0.2, 0.05, 0.4, 7, 0.25)


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    return ["--keys", str(tmp_path / "keys")]


def test_a_station_and_a_client_exchange_keys(
    keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ["--keys", str(tmp_path / "hmi")]
    assert main(["make", "station", *keys]) == main(["make", "panel", *other]) == 0
    shown = capsys.readouterr()
    assert main(["allow", str(tmp_path / "hmi" / "panel.public"), *keys]) == 0
    assert "panel may connect here: curve25519:" in capsys.readouterr().out
    assert main(["show", "panel", *keys]) == main(["show", "panel", *other]) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second
    assert main(["allow", first, "--name", "again", *keys]) == 0
    assert "as before under the name panel" in capsys.readouterr().out
    assert main(["list", *keys]) == 0
    listed = capsys.readouterr()
    for word in ("station", "panel", "ours", "allowed", "connects"):
        assert word in listed.out
    assert main(["revoke", first, *keys]) == 0
    assert main(["revoke", "panel", *keys]) == 11
    assert "no key 'panel' is allowed" in capsys.readouterr().err
    for folder in ("keys", "hmi"):
        secret = KeyFolder(tmp_path / folder).pair(Kind.CONNECT).secret.hex()
        assert secret not in shown.out + shown.err + listed.out + listed.err


def test_what_cannot_be_done_is_said_in_a_line(
    keys: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *keys]) == 0
    assert main(["make", "station", *keys]) == 0
    for arguments in (
        ["make", "station"],
        ["make", "../up"],
        ["show", "nobody"],
        ["allow", str(tmp_path / "none.public")],
        ["allow", str(tmp_path / "keys" / "station.secret")],
        ["revoke", "curve25519:" + "0" * 64],
    ):
        capsys.readouterr()
        assert main([*arguments, *keys]) == 11
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "Traceback" not in captured.err


def test_a_bundle_is_signed_required_and_tampered_with(
    keys: list[str], bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(bundle_path)
    required = ["verify", path, "--require-signed", *keys]
    assert edge_bundle(["sign", path, *keys]) == 11
    assert main(["make", "release", "--sign", *keys]) == 0
    assert edge_bundle(required) == 3
    assert "not signed" in capsys.readouterr().err
    assert edge_bundle(["verify", path]) == 0
    assert capsys.readouterr().out.endswith(", not signed\n")

    assert edge_bundle(["sign", path, *keys]) == 0
    assert "signed by release, ed25519:" in capsys.readouterr().out
    assert edge_bundle(required) == 3
    assert "not allowed here" in capsys.readouterr().err
    assert edge_bundle(["verify", path, *keys]) == 0
    assert "signed by a key that is not allowed here, ed25519:" in capsys.readouterr().out
    assert main(["allow", str(Path(keys[1]) / "release.public"), *keys]) == 0
    assert edge_bundle(required) == 0
    assert "signed by release, ed25519:" in capsys.readouterr().out
    assert edge_bundle(["show", path]) == 0
    assert "signed by" in capsys.readouterr().out

    with Bundle.open(path) as bundle:
        signature = bytes(bundle.read("signature.json"))
    set_calibration(path, RULE)
    assert edge_bundle(required) == 3
    update_bundle(path, {"signature.json": signature})
    for arguments in (required, ["verify", path]):
        capsys.readouterr()
        assert edge_bundle(arguments) == 3
        assert "is not what was signed" in capsys.readouterr().err
