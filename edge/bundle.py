"""The bundle `redi.plan`: one file with all that a station needs.  `docs/bundle.md` describes its format.

A plain ZIP of stored members, `manifest.json` first.  Opening checks everything: layout, sizes, SHA-256
digests, types and values of every spec, shapes of every array.  Nothing is unpickled.  Arrays are read where
they lie in the mapped file.  Every write makes a whole new file and renames it into place: a station that has
the old one mapped keeps the old one.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.container import MANIFEST, Container, open_container, write_container
from edge.errors import BundleError, BundleMismatchError, BundleVersionError
from edge.files import atomic_write
from edge.frames import U8
from edge.manifest import SCHEMA_VERSION, Calibration, EngineKey, Golden, Manifest, Member, ModelSpec, Signature
from edge.validation import (
    MAX_AXES,
    descriptor_size,
    validate_array,
    validate_calibration,
    validate_flat_field,
    validate_golden,
    validate_model,
)

CALIBRATION = "calibration.json"
GOLDEN = "golden.json"
CORE = "core.onnx"
DESCRIPTORS = "prompts/descriptors.npy"
PROMPT_NAMES = "prompts/names.json"
TRAINED = "trained.json"
ENGINES = "engines/"
SIGNATURE = "signature.json"
FLAT_FIELD = "flat_field.npy"

#: Members that may change while the model stays the same; engines may too.
_OF_THE_STATION = (CALIBRATION, FLAT_FIELD, SIGNATURE)

_ARRAY_HEADER_LIMIT = 1024
_HINT = "copy it again from where it was made, or write it again with train-export"

Spec = TypeVar("Spec")


class Bundle:
    """An open bundle.  Views and arrays that it gave out stay valid after `close`.

    Attributes:
        path: the file.
        verified: the digests were checked on opening.
        manifest: its table of contents and the model's specs.
        golden: the pinned frames with their scores.
        calibration: the decision rule, None before `calib-threshold`.
        calibration_id: first 16 hex digits of the SHA-256 of `calibration.json`, "" where there is none.
        bundle_id: first 16 hex digits of a SHA-256 over the model's specs and all members but calibration,
            flat field, engines and signature: a new threshold or engine leaves it as it is.
        signature: who vouches for it, None where nobody does; checked by `edge.signing` alone.
        trained: pixel digests (`edge.images.pixel_digest`) of the training images, as far as known.
        prompt_names: where each prompt of the bank came from, in the bank's order.
    """

    def __init__(self, container: Container, path: Path, *, verify: bool = True) -> None:
        self.path = path
        self.verified = verify
        self._container = container
        container.check_layout()
        self.manifest = self._read_manifest()
        self._check_members(verify)
        try:
            validate_model(self.manifest.model)
            self.golden = self._decode(GOLDEN, Golden)
            validate_golden(self.golden)
            self.calibration = self._decode(CALIBRATION, Calibration) if CALIBRATION in self.members else None
            if self.calibration is not None:
                validate_calibration(self.calibration)
            self._check_flat_field()
            self.signature = self._decode(SIGNATURE, Signature) if SIGNATURE in self.members else None
            self.trained = self._decode(TRAINED, frozenset[str]) if TRAINED in self.members else frozenset()
            self.prompt_names = self._check_prompts()
        except ValueError as error:
            raise self._invalid(str(error)) from error
        self._check_golden_and_engines()
        self.calibration_id = self.members[CALIBRATION].sha256[:16] if self.calibration is not None else ""
        self.bundle_id = self._identity()

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True, resident: bool = False) -> Bundle:
        """Map and check the bundle at `path`; `verify=False` leaves out the digests alone.

        `resident` reads it into memory: a station goes on whatever happens to the file, which a map would not survive.

        Raises:
            BundleError: missing, unreadable, truncated, corrupted or foreign.
            BundleVersionError: written by a newer release.
        """
        path = Path(path)
        container = open_container(path, resident=resident)
        try:
            return cls(container, path, verify=verify)
        except BaseException:
            container.close()
            raise

    @property
    def members(self) -> dict[str, Member]:
        """Size and digest of every member but the manifest."""
        return self.manifest.members

    def read(self, member: str) -> memoryview:
        """Return a read-only view of a member's bytes, in place in the mapped file."""
        view = self._container.members.get(member)
        if view is None:
            raise BundleMismatchError(f"{self.path}: no member {member}", f"edge-bundle show {self.path} lists them")
        return view

    def array(self, member: str) -> NDArray[Any]:
        """Return an `.npy` member as a read-only array, in place in the mapped file."""
        data = self.read(member)
        try:
            return _view_array(data, member)
        except ValueError as error:
            raise self._invalid(str(error)) from error

    def golden_image(self, name: str) -> U8:
        """Return the golden frame `name` as BGR pixels `(height, width, 3)`."""
        import cv2

        member = f"golden/{name}.png"
        data = np.frombuffer(self.read(member), np.uint8)
        image = None
        with suppress(cv2.error):
            image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is None:
            raise self._invalid(f"{member} is not an image")
        return np.asarray(image, np.uint8)

    def close(self) -> None:
        """Let go of the file.  Closing twice is harmless."""
        self._container.close()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _invalid(self, what: str) -> BundleError:
        return BundleError(f"{self.path}: invalid bundle: {what}", _HINT)

    def _read_manifest(self) -> Manifest:
        self._container.check_contents(MANIFEST)
        # The version first, by itself: a newer manifest may have fields that the full specs refuse.
        schema = self._decode(MANIFEST, _Version).schema
        if schema > SCHEMA_VERSION:
            raise BundleVersionError(
                f"{self.path}: bundle schema {schema}, this release reads up to {SCHEMA_VERSION}",
                "upgrade redi-edge on this machine, or export the model with this release",
            )
        if schema < 1:
            raise self._invalid(f"schema is {schema}, but must be at least 1")
        return self._decode(MANIFEST, Manifest)

    def _decode(self, member: str, kind: type[Spec]) -> Spec:
        if member not in self._container.members:
            raise self._invalid(f"{member} is missing")
        try:
            return msgspec.json.decode(self._container.members[member], type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._invalid(f"{member}: {error}") from error

    def _check_members(self, verify: bool) -> None:
        present = set(self._container.members) - {MANIFEST}
        for name in sorted(present ^ set(self.members)):
            raise self._invalid(f"{name} is {'not in the manifest' if name in present else 'missing'}")
        for name, member in self.members.items():
            data = self._container.members[name]
            if data.nbytes != member.size:
                raise self._invalid(f"{name} has {data.nbytes} bytes, the manifest says {member.size}")
            if verify and hashlib.sha256(data).hexdigest() != member.sha256:
                raise self._invalid(f"{name} is corrupted: its SHA-256 is not the manifest's")
        if verify:
            self._container.check_contents()

    def _check_prompts(self) -> tuple[str, ...]:
        core = self.manifest.model.core
        if not core.uses_prompt:
            return ()
        names = self._decode(PROMPT_NAMES, tuple[str, ...])
        if not names:
            raise ValueError(f"{PROMPT_NAMES} is empty, but the model needs at least one prompt")
        shapes: dict[str, tuple[int, ...]] = {DESCRIPTORS: (descriptor_size(self.manifest.model),)}
        shapes |= {f"prompts/{name}.npy": shape for name, shape in core.prompt_features.items()}
        for member, shape in shapes.items():
            if member not in self.members:
                raise ValueError(f"{member} is missing")
            array = self.array(member)
            validate_array(member, array.shape, (len(names), *shape))
            accepted = ("float32",) if member == DESCRIPTORS else ("float32", "float16")
            if array.dtype.name not in accepted:
                raise ValueError(f"{member} is {array.dtype.name}, but must be {' or '.join(accepted)}")
        return names

    def _check_flat_field(self) -> None:
        wanted = self.calibration.flat_field if self.calibration is not None else ""
        found = self.members[FLAT_FIELD].sha256 if FLAT_FIELD in self.members else ""
        if wanted != found:
            raise ValueError(f"{FLAT_FIELD} is {found or 'not there'}, the calibration's is {wanted or 'none'}")
        if found:
            array = self.array(FLAT_FIELD)
            validate_flat_field(array.dtype.name, array.shape)

    def _check_golden_and_engines(self) -> None:
        for name in (CORE, *(f"golden/{frame.name}.png" for frame in self.golden.frames)):
            if name not in self.members:
                raise self._invalid(f"{name} is missing")
        engines = {name for name in self.members if name.startswith(ENGINES)}
        for name in sorted(engines ^ set(self.manifest.engines)):
            what = "has no engine key" if name in engines else "is missing"
            raise self._invalid(f"{name} {what}")

    def _identity(self) -> str:
        # The specs as they stand in the file: a later release, with more fields, finds the same identity.
        model = json.loads(bytes(self._container.members[MANIFEST]))["model"]
        identity = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
        for name, member in sorted(self.members.items()):
            if name not in _OF_THE_STATION and not name.startswith(ENGINES):
                identity.update(f"\0{name}\0{member.sha256}".encode())
        return identity.hexdigest()[:16]


class _Version(msgspec.Struct):
    schema: int


class _Corrected(msgspec.Struct):
    flat_field: str = ""


def write_bundle(
    path: Path | str,
    *,
    model: ModelSpec,
    members: Mapping[str, bytes | NDArray[Any]],
    provenance: Mapping[str, str],
    engines: Mapping[str, EngineKey] | None = None,
) -> None:
    """Write a new bundle atomically, checked before it takes its place; arrays become `.npy` members.

    Raises:
        BundleError: the members do not make a valid bundle, or the file cannot be written.
    """
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    data = {name: _array_bytes(name, m) if isinstance(m, np.ndarray) else m for name, m in members.items()}
    manifest = Manifest(SCHEMA_VERSION, created, model, {}, dict(provenance), dict(engines or {}))
    _write(Path(path), manifest, data)


def update_bundle(
    path: Path | str,
    members: Mapping[str, bytes],
    engines: Mapping[str, EngineKey] | None = None,
    *,
    out: Path | str | None = None,
) -> None:
    """Add or replace calibration, flat field, engines or signature, atomically; the rest is copied as it is.

    `engines` names the machine for each engine among `members`; other engines keep theirs.  A new calibration takes
    the signature away, which was of the old one, and a flat field that it does not name.  With `out`, that file is
    written and the one at `path` stays.

    Raises:
        BundleError: the old file or the outcome is no valid bundle, or cannot be written.
        ValueError: a member other than those: a bundle's model never changes.
    """
    for name in members:
        if name not in _OF_THE_STATION and not name.startswith(ENGINES):
            raise ValueError(f"{name}: only {', '.join(_OF_THE_STATION)} and {ENGINES}… of a bundle may change")
    with Bundle.open(path) as old:
        data: dict[str, bytes | memoryview] = {name: old.read(name) for name in old.members}
        if CALIBRATION in members:
            data.pop(SIGNATURE, None)
            # What is none is refused below, with the file's name.
            with suppress(msgspec.DecodeError):
                if not msgspec.json.decode(members[CALIBRATION], type=_Corrected).flat_field:
                    data.pop(FLAT_FIELD, None)
        manifest = msgspec.structs.replace(old.manifest, engines={**old.manifest.engines, **(engines or {})})
        # The specs as they stand in the file, even where this release knows more of them: they are what was signed.
        target = old.path if out is None else Path(out)
        _write(target, manifest, {**data, **members}, msgspec.json.decode(old.read(MANIFEST)))
        data.clear()


def set_calibration(
    path: Path | str, calibration: Calibration, *, bundle_id: str = "", flat_field: NDArray[np.uint16] | None = None
) -> None:
    """Store the decision rule in the bundle, atomically.

    A `flat_field` is stored with it, and named by it; without, the one stays that `calibration` names.

    Raises:
        BundleError: as `update_bundle`, or the calibration's values make no sense.
        BundleMismatchError: `bundle_id` is given and the file now holds another model.
    """
    if bundle_id:
        with Bundle.open(path, verify=False) as bundle:
            if bundle.bundle_id != bundle_id:
                raise BundleMismatchError(
                    f"{path}: its model is now {bundle.bundle_id}, not {bundle_id}, which was calibrated",
                    "calibrate again",
                )
    members = {}
    if flat_field is not None:
        members[FLAT_FIELD] = _array_bytes(FLAT_FIELD, flat_field)
        digest = hashlib.sha256(members[FLAT_FIELD]).hexdigest()
        calibration = msgspec.structs.replace(calibration, flat_field=digest)
    update_bundle(path, {**members, CALIBRATION: msgspec.json.encode(calibration)})


def _write(
    path: Path, manifest: Manifest, data: Mapping[str, bytes | memoryview], before: Mapping[str, Any] | None = None
) -> None:
    ordered = {name: data[name] for name in sorted(data)}
    table = {name: Member(len(view), hashlib.sha256(view).hexdigest()) for name, view in ordered.items()}
    manifest = msgspec.structs.replace(manifest, members=table)
    document = {**msgspec.to_builtins(manifest), **(before or {})}
    document |= {"members": table, "engines": manifest.engines}
    text = msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
    try:
        with atomic_write(path) as file:
            write_container(file, {MANIFEST: text, **ordered})
            _check_written(file, path)
    except ValueError as error:
        raise BundleError(f"{path}: cannot be written: {error}") from error
    except OSError as error:
        problem = f"{path}: cannot be written: {error.strerror or error}"
        raise BundleError(problem, "check the folder, its permissions and the free space") from error


def _check_written(file: BinaryIO, path: Path) -> None:
    file.flush()
    container = Container(file, path)
    try:
        Bundle(container, path)
    finally:
        container.close()


def _array_bytes(name: str, array: NDArray[Any]) -> bytes:
    if not name.endswith(".npy"):
        raise ValueError(f"{name}: an array needs a member name ending in .npy")
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _view_array(data: memoryview, name: str) -> NDArray[Any]:
    """View `.npy` bytes as an array, not copied, never unpickled.  `ValueError` names what is wrong."""
    head = io.BytesIO(data[: _ARRAY_HEADER_LIMIT + 10])
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("only version 1.0 is read")
        header = np.lib.format.read_array_header_1_0(head, max_header_size=_ARRAY_HEADER_LIMIT)
        shape, column_major, dtype = header
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{name} is no array: {error}") from error
    if dtype.hasobject or dtype.kind not in "biuf" or not dtype.isnative:
        raise ValueError(f"{name} holds {dtype}, but must hold plain numbers")
    if column_major:
        raise ValueError(f"{name} is in column-major order, but must be in row-major order")
    if not 1 <= len(shape) <= MAX_AXES or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    body = data[head.tell() :]
    if math.prod(shape) * dtype.itemsize != body.nbytes:
        raise ValueError(f"{name} says {shape} {dtype.name}, but holds {body.nbytes} bytes")
    return np.frombuffer(body, dtype).reshape(shape)
