"""Bundles that nobody should write: contents changed with every digest right, and how they must be refused."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.bundle import Bundle
from edge.container import write_container
from edge.errors import BundleError

Manifest = dict[str, Any]


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(path: Path, change: Callable[[Manifest, dict[str, bytes]], None]) -> None:
    """Rewrite the bundle with other contents, every digest right: what a bug or a forger would make."""
    members = contents(path)
    manifest = json.loads(members.pop("manifest.json"))
    change(manifest, members)
    if manifest.get("members") != "as changed":
        manifest["members"] = {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in members.items()
        }
    with path.open("wb") as file:
        write_container(file, {"manifest.json": json.dumps(manifest).encode(), **members})


def refused(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    assert caught.value.exit_code == 3
    assert str(path) in caught.value.problem
    assert "\n" not in str(caught.value)
    return caught.value.problem


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()
