from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from edge import __version__

COMMANDS = [point for point in entry_points(group="console_scripts") if point.dist and point.dist.name == "redi-edge"]


def test_there_are_commands() -> None:
    assert {point.name for point in COMMANDS} >= {"edge-run", "calib-threshold", "train-run", "train-sweep"}


@pytest.mark.parametrize("point", COMMANDS, ids=lambda point: point.name)
def test_every_command_tells_its_version(point: object, capsys: pytest.CaptureFixture[str]) -> None:
    main = point.load()  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"redi-edge {__version__}\n"
