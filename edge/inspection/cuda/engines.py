"""Compiled engines: what each is good for, and where it is kept: in the bundle, or in this user's cache.

An engine is used only where runtime, device, version and precision are this machine's and it was made of this very
graph.  One in a bundle that is signed is never used, as no signature covers it; this machine's own cache stands in.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge.bundle import CORE, ENGINES, Bundle
from edge.container import MANIFEST, open_container, write_container
from edge.cuda_driver import Device
from edge.errors import BundleError
from edge.files import atomic_write
from edge.inspection.cuda.device import DeviceFacts
from edge.manifest import EngineKey

_log = logging.getLogger("edge.engines")

_RUNTIME = "tensorrt"
_PAYLOAD = "payload"
_DLA = re.compile(r"(?P<device>.*), DLA (?P<core>\d)", re.DOTALL)
#: Mode bits by which others could put an engine of theirs in the place of ours.
_WRITABLE_BY_OTHERS = 0o022


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cached file says of itself; `graph` is the SHA-256 of the ONNX graph, empty for timings."""

    key: EngineKey
    graph: str
    sha256: str


@dataclass(frozen=True)
class Found:
    """A compiled engine that fits here: its bytes, its key, and the file that it is from, None where it is new."""

    plan: bytes
    key: EngineKey
    path: Path | None = None

    @property
    def dla(self) -> int | None:
        """The accelerator that it was built for."""
        return split_device(self.key.device)[1]


def machine_key(device: DeviceFacts | Device, version: str, precision: str, dla: int | None = None) -> EngineKey:
    """Return the key of an engine that this TensorRT builds on this device from a graph of this precision."""
    name = "sm_{}{} {}".format(*device.compute_capability, device.name)
    return EngineKey(_RUNTIME, name if dla is None else f"{name}, DLA {dla}", version, precision)


def split_device(device: str) -> tuple[str, int | None]:
    """Return a key's device and its accelerator's number."""
    found = _DLA.fullmatch(device)
    return (found["device"], int(found["core"])) if found else (device, None)


def fits(key: EngineKey, machine: EngineKey) -> bool:
    """Whether an engine of this key runs on the machine, whose own key names no accelerator."""
    return msgspec.structs.replace(key, device=split_device(key.device)[0]) == machine


def member_name(bundle: Bundle, machine: EngineKey) -> str:
    """Return the one member in which the machine's engine of the bundle's graph is: another build takes its place."""
    return f"{ENGINES}{_graph(bundle)[:16]}-{_digest(machine)[:16]}.engine"


def find_engine(bundle: Bundle, machine: EngineKey) -> Iterator[Found]:
    """Yield the engines that fit this machine, the bundle's first."""
    member = member_name(bundle, machine)
    key = bundle.manifest.engines.get(member)
    if key is not None and fits(key, machine):
        if bundle.signature is not None:
            _log.info("%s is signed: its engine is not used, as no signature covers it", bundle.path)
        elif not bundle.verified:
            _log.info("%s was opened without its digests being checked: its engine is not used", bundle.path)
        else:
            yield Found(bytes(bundle.read(member)), key, bundle.path)
    path = engine_path(bundle, machine)
    stored = _read(path, graph=_graph(bundle))
    if stored is not None and fits(stored[0], machine):
        yield Found(stored[1], stored[0], path)


def engine_path(bundle: Bundle, machine: EngineKey) -> Path:
    """Return the file of the cache in which the machine's engine of the bundle's graph is."""
    return cache_folder() / member_name(bundle, machine)


def keep_engine(bundle: Bundle, key: EngineKey, plan: bytes) -> Path:
    """Keep an engine of the bundle's graph in the cache; return its file.

    Raises:
        OSError: the cache cannot be written, or others could write to it.
    """
    machine = msgspec.structs.replace(key, device=split_device(key.device)[0])
    path = engine_path(bundle, machine)
    _write(path, key, plan, graph=_graph(bundle))
    return path


def read_timing(key: EngineKey) -> bytes:
    """Return what earlier builds on this machine have learnt about layers' speed, empty where nothing is kept."""
    stored = _read(_timing_path(key), graph="")
    return stored[1] if stored is not None and stored[0] == _timing_key(key) else b""


def keep_timing(key: EngineKey, timing: bytes) -> None:
    """Keep it.

    Raises:
        OSError: the cache cannot be written, or others could write to it.
    """
    _write(_timing_path(key), _timing_key(key), timing, graph="")


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/redi-edge`, or the same below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "redi-edge"


def _timing_key(key: EngineKey) -> EngineKey:
    # Layers' timings hold for every graph and precision.
    return msgspec.structs.replace(key, device=split_device(key.device)[0], precision="")


def _timing_path(key: EngineKey) -> Path:
    return cache_folder() / "timing" / f"{_digest(_timing_key(key))[:16]}.timing"


def _graph(bundle: Bundle) -> str:
    return bundle.members[CORE].sha256


def _digest(key: EngineKey) -> str:
    return hashlib.sha256(msgspec.json.encode(key)).hexdigest()


def require_private(folder: Path) -> None:
    """Raise `OSError` where others than this user and the superuser could put files into the folder."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & _WRITABLE_BY_OTHERS:
        raise PermissionError(f"{folder} may be written by others (mode {found.st_mode & 0o7777:04o})")


def _read(path: Path, *, graph: str) -> tuple[EngineKey, bytes] | None:
    """Return a cached file's key and content, None where it is missing, torn, or not to be trusted."""
    if not path.is_file():
        return None
    try:
        require_private(path.parent)
        container = open_container(path)
        try:
            container.check_layout()
            stored = msgspec.json.decode(container.members[MANIFEST], type=_Stored)
            payload = bytes(container.members[_PAYLOAD])
        finally:
            container.close()
        if hashlib.sha256(payload).hexdigest() != stored.sha256:
            raise BundleError(f"{path}: its content has changed")
    except (BundleError, OSError, msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        _log.warning("%s is not used: %s", path, error)
        return None
    return (stored.key, payload) if stored.graph == graph else None


def _write(path: Path, key: EngineKey, payload: bytes, *, graph: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(path.parent)
    head = msgspec.json.encode(_Stored(key, graph, hashlib.sha256(payload).hexdigest()))
    with atomic_write(path) as file:
        write_container(file, {MANIFEST: head, _PAYLOAD: payload})
