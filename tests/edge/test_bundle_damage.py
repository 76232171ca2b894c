"""Every way in which a bundle can be broken ends in one `BundleError`."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.bundle import Bundle
from edge.container import _layout, write_container
from edge.errors import BundleError
from tests.edge.forging import contents, forge, npy, refused

SAME_FILE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SAME_FILE
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(bundle_path, place, bit):
    whole = bundle_path.read_bytes()
    broken = bytearray(whole)
    broken[int(place * len(whole))] ^= 1 << bit
    copy = bundle_path.with_suffix(".broken")
    copy.write_bytes(broken)
    refused(copy)


def test_a_flip_of_any_byte_outside_the_contents_is_found(bundle_path):
    whole = bundle_path.read_bytes()
    with zipfile.ZipFile(bundle_path) as archive:
        entries = [(info.filename, info.file_size, info.CRC) for info in archive.infolist()]
    headers, tail = _layout(entries)
    places = [p for start, header in headers for p in range(start, start + len(header))]
    places += range(len(whole) - len(tail), len(whole))
    copy = bundle_path.with_suffix(".broken")
    for place in places:
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        copy.write_bytes(broken)
        refused(copy)


@SAME_FILE
@given(place=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_found(bundle_path, place):
    whole = bundle_path.read_bytes()
    copy = bundle_path.with_suffix(".broken")
    copy.write_bytes(whole[: int(place * len(whole))])
    refused(copy)


@SAME_FILE
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=40)), min_size=1, max_size=8)
)
def test_overwritten_stretches_never_raise_anything_else(bundle_path, stretches):
    whole = bundle_path.read_bytes()
    broken = bytearray(whole)
    for place, data in stretches:
        start = int(place * len(whole))
        broken[start : start + len(data)] = data
    copy = bundle_path.with_suffix(".broken")
    copy.write_bytes(broken)
    if bytes(broken) == whole:
        Bundle.open(copy).close()
    else:
        refused(copy)


@SAME_FILE
@given(st.binary(max_size=300))
def test_foreign_bytes_are_refused(bundle_path, data):
    copy = bundle_path.with_suffix(".foreign")
    for head in (b"", b"PK\x03\x04", b"PK\x05\x06"):
        copy.write_bytes(head + data)
        refused(copy)


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06", b"x" * 5000])
def test_bytes_before_or_after_are_found(bundle_path, extra):
    whole = bundle_path.read_bytes()
    for data in (extra + whole, whole + extra):
        bundle_path.write_bytes(data)
        refused(bundle_path)


def test_no_file_folder_empty_file_pipe(tmp_path):
    assert "no such file" in refused(tmp_path / "none.plan")
    assert "a folder" in refused(tmp_path)
    empty = tmp_path / "empty.plan"
    empty.touch()
    assert "empty" in refused(empty)
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(tmp_path / "pipe")
    assert "no such file" in refused(tmp_path / "nowhere/a.plan")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file/a.plan")
    refused(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(bundle_path):
    bundle_path.chmod(0)
    assert "permission" in refused(bundle_path)


def test_permission_error_is_a_bundle_error(bundle_path, monkeypatch):
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "no permission" in refused(bundle_path)


def test_a_zip_of_something_else(tmp_path):
    path = tmp_path / "a.plan"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a bundle" in refused(path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert "not a bundle" in refused(path)


def rezip(path: Path, **options: Any) -> None:
    members = contents(path)
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_compressed_and_rezipped_bundles_are_refused(bundle_path):
    whole = bundle_path.read_bytes()
    rezip(bundle_path, compression=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(bundle_path)
    bundle_path.write_bytes(whole)
    rezip(bundle_path)
    assert "not as written" in refused(bundle_path)


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite a field of the first record with this signature."""
    start = data.index(signature) + offset
    return data[:start] + value + data[start + len(value) :]


def test_encrypted_members_are_refused(bundle_path):
    bundle_path.write_bytes(patched(bundle_path.read_bytes(), b"PK\x01\x02", 8, b"\x01\x00"))
    assert "encrypted" in refused(bundle_path)


def test_overlapping_members_are_refused(bundle_path):
    data = bundle_path.read_bytes()
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    bundle_path.write_bytes(data[: second + 42] + b"\0\0\0\0" + data[second + 46 :])
    refused(bundle_path)


@pytest.mark.parametrize("name", ["../core", "/tmp/coree"[:9], "C:core.on"])
def test_names_that_lead_elsewhere_are_refused(bundle_path, name):
    old, new = b"core.onnx", name.encode().ljust(9, b"x")[:9]
    bundle_path.write_bytes(bundle_path.read_bytes().replace(old, new))
    assert "member name" in refused(bundle_path)


def test_duplicate_names_are_refused(bundle_path):
    members = contents(bundle_path)
    with zipfile.ZipFile(bundle_path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("core.onnx", b"another")
    assert "core.onnx is there twice" in refused(bundle_path)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def header(text: str) -> bytes:
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"not an array at all",
        npy(np.array([Evil()] * 6, object), allow_pickle=True),
        npy(np.zeros((3, 2, 3), ">f4")),
        npy(np.asfortranarray(np.ones((3, 2, 3), np.float32))),
        npy(np.zeros((3, 2, 3), np.float64)),
        npy(np.zeros((3, 2, 3), np.complex64)),
        npy(np.zeros((3, 2), "f4,f4,f4")),
        npy(np.zeros((3, 2, 3), np.float32))[:-1],
        npy(np.zeros((3, 2, 3), np.float32)) + b"x",
        npy(np.zeros((2, 2, 3), np.float32)),
        npy(np.zeros((3, 3, 2), np.float32)),
        npy(np.zeros((), np.float32)),
        npy(np.zeros((0, 2, 3), np.float32)),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -2, 3), }") + bytes(72),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 2, 3), }") + bytes(72),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, True, 3), }") + bytes(72),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3, 2, 3), }") + bytes(72),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 50 + ")" * 50 + ", }") + bytes(72),
        header("__import__('os').mkdir('unpickled')") + bytes(72),
    ],
)
def test_an_array_that_is_none_is_named_and_never_unpickled(bundle_path, data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    forge(bundle_path, lambda _, members: members.update({"prompts/key.npy": data}))
    assert "prompts/key.npy" in refused(bundle_path)
    assert not (tmp_path / "unpickled").exists()


def test_without_verify_the_layout_still_holds_but_digests_are_not_read(bundle_path):
    data = bytearray(bundle_path.read_bytes())
    data[data.index(b"not a graph")] ^= 1
    bundle_path.write_bytes(data)
    Bundle.open(bundle_path, verify=False).close()
    assert "core.onnx" in refused(bundle_path)


def test_the_manifest_is_checked_even_without_verify(bundle_path):
    data = bundle_path.read_bytes()
    assert data.count(b'"resnet18"') == 1
    bundle_path.write_bytes(data.replace(b'"resnet18"', b'"resnet19"'))
    with pytest.raises(BundleError, match=r"manifest\.json have changed"):
        Bundle.open(bundle_path, verify=False)


@given(st.dictionaries(st.sampled_from(["a", "b/c", "ü", "d e.bin", "x" * 150]), st.binary(max_size=200), max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_layout_is_a_zip_with_aligned_members(members):
    buffer = io.BytesIO()
    members = {"manifest.json": b"{}", **members}
    write_container(buffer, members)
    with zipfile.ZipFile(buffer) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members
        for info in archive.infolist():
            assert zlib.crc32(members[info.filename]) == info.CRC
            name_and_extra = buffer.getvalue()[info.header_offset + 26 : info.header_offset + 30]
            start = info.header_offset + 30 + name_and_extra[0] + name_and_extra[2]
            start += 256 * (name_and_extra[1] + name_and_extra[3])
            assert start % 64 == 0
