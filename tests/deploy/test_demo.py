"""What the demo adds to the commands that it runs: the choice of the picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DEMO = Path(__file__).parents[2] / "deploy" / "demo.py"


def test_the_picture_shown_is_that_of_the_event_not_of_a_look_alike(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    # Part 68 has event 69: the number 000068 is in both names.
    for seq, part in ((68, 67), (69, 68)):
        (tmp_path / f"94c70434-{seq:07d}-sim_70_{part:06d}.png").touch()
    event = {"boot_id": "94c70434f6de4bbb", "seq": 69, "source": "sim/70/000068"}
    assert demo.overlay_of(event, tmp_path).name == "94c70434-0000069-sim_70_000068.png"
