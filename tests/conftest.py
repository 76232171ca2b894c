"""Fixtures that several packages' tests share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# Before any library reads them: tests share the machine, and spinning threads slow everybody down.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")
# No test keeps its events where the user's stations do; those of a test that says nothing else end with the tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="redi-state-")

# A test run that was started in the background ignores SIGINT, and every process that it starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.tiny_bundle import TinyBundle, write_tiny_bundle

# How long an example takes says how busy the machine is.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["XDG_STATE_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's stations keep their events in a folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A calibrated tiny bundle for all tests together: copy it before you change it."""
    return write_tiny_bundle(Path(tmp_path_factory.mktemp("tiny")) / "redi.plan")
