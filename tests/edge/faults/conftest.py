from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge.events.killed import Killer


@pytest.fixture(scope="session")
def killer() -> Iterator[Killer]:
    """Forks and kills whole stations: one process for all tests, as it takes seconds to start."""
    killer = Killer(Path(__file__).with_name("station.py"))
    yield killer
    killer.close()
