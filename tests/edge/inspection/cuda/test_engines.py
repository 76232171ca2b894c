"""Which engine is used: one of this very graph, device, version and precision, whole, from a place to be trusted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge.bundle import SIGNATURE, Bundle, update_bundle, write_bundle
from edge.errors import BundleError
from edge.inspection.cuda.device import DeviceFacts
from edge.inspection.cuda.engines import (
    cache_folder,
    engine_path,
    find_engine,
    fits,
    keep_engine,
    keep_timing,
    machine_key,
    member_name,
    read_timing,
    split_device,
)
from edge.manifest import EngineKey, Signature
from tests.edge.conftest import small_members, small_model

ORIN = DeviceFacts("Orin", (8, 7), True, 8 << 30)
KEY = machine_key(ORIN, "10.3.0", "fp16")
PLAN = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "redi-edge"


@pytest.fixture
def bundle(bundle_path: Path) -> Iterator[Bundle]:
    with Bundle.open(bundle_path) as opened:
        yield opened


def put(path: Path, key: EngineKey = KEY, plan: bytes = PLAN) -> None:
    """Store an engine in a bundle as `edge-build` does."""
    with Bundle.open(path) as bundle:
        machine = msgspec.structs.replace(key, device=split_device(key.device)[0])
        member = member_name(bundle, machine)
    update_bundle(path, {member: plan}, {member: key})


def found(path: Path, machine: EngineKey = KEY, *, verify: bool = True) -> list[bytes]:
    with Bundle.open(path, verify=verify) as bundle:
        return [each.plan for each in find_engine(bundle, machine)]


names = st.text(min_size=1, max_size=12) | st.sampled_from(["Orin", "Orin, DLA 0", "NVIDIA GeForce RTX 4090", "sm_87"])
facts = st.builds(DeviceFacts, names, st.tuples(st.integers(5, 12), st.integers(0, 9)), st.booleans(), st.just(8 << 30))
machines = st.builds(
    machine_key,
    facts | st.just(ORIN),
    st.sampled_from(["10.3.0", "10.3.1", "10.30", "11.4.0.106"]),
    st.sampled_from(["fp16", "fp32"]),
)
accelerators = st.none() | st.integers(0, 3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(built=machines, dla=accelerators, here=machines, close=st.booleans())
def test_an_engine_is_used_by_its_own_machine_alone(
    bundle_path: Path, own_cache: Path, built: EngineKey, dla: int | None, here: EngineKey, close: bool
) -> None:
    assume(", DLA" not in built.device + here.device)
    if close:
        # One field apart, or none.
        here = msgspec.structs.replace(built, version=here.version)
    key = built if dla is None else msgspec.structs.replace(built, device=f"{built.device}, DLA {dla}")
    with Bundle.open(bundle_path) as bundle:
        keep_engine(bundle, key, PLAN)
        used = list(find_engine(bundle, here))
        assert [each.plan for each in used] == ([PLAN] if here == built else [])
        assert fits(key, here) == (here == built)
        assert all(each.dla == dla and each.key == key for each in used)
        # The same by its name alone: an engine that lies where another belongs is not used.
        target = engine_path(bundle, here)
        if here != built:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(engine_path(bundle, built), target)
            assert list(find_engine(bundle, here)) == []
    shutil.rmtree(own_cache)


def test_devices_of_one_name_are_told_apart() -> None:
    keys = {
        machine_key(DeviceFacts(name, capability, True, 1), version, precision)
        for name in ("Orin", "Thor")
        for capability in ((8, 7), (8, 6))
        for version in ("10.3.0", "10.16.1.11")
        for precision in ("fp16", "fp32")
    }
    assert len(keys) == 16
    assert len({msgspec.json.encode(key) for key in keys}) == 16


def test_the_bundles_engine_comes_first(bundle_path: Path) -> None:
    assert found(bundle_path) == []
    put(bundle_path, plan=b"in the bundle")
    with Bundle.open(bundle_path) as bundle:
        before = bundle.bundle_id
        keep_engine(bundle, KEY, b"in the cache")
    assert found(bundle_path) == [b"in the bundle", b"in the cache"]
    # Another build takes its place, and engines of other machines stay.
    other = machine_key(DeviceFacts("Thor", (11, 0), True, 1), "11.4.0.106", "fp16")
    put(bundle_path, other, b"thor's")
    put(bundle_path, plan=b"another")
    assert found(bundle_path)[0] == b"another"
    assert found(bundle_path, other) == [b"thor's"]
    with Bundle.open(bundle_path) as bundle:
        assert len(bundle.manifest.engines) == 2
        assert bundle.bundle_id == before


def test_an_engine_for_an_accelerator_takes_the_plain_ones_place(bundle_path: Path) -> None:
    put(bundle_path)
    put(bundle_path, machine_key(ORIN, "10.3.0", "fp16", dla=1), b"with DLA")
    assert found(bundle_path) == [b"with DLA"]
    with Bundle.open(bundle_path) as bundle:
        (engine,) = find_engine(bundle, KEY)
        assert engine.dla == 1
        assert engine.key.device == "sm_87 Orin, DLA 1"


def test_an_engine_of_another_graph_is_not_used(bundle_path: Path, tmp_path: Path) -> None:
    put(bundle_path)
    other = tmp_path / "other.plan"
    members = {**small_members(), "core.onnx": b"another graph of the same shapes"}
    write_bundle(other, model=small_model(), members=members, provenance={})
    with Bundle.open(bundle_path) as bundle, Bundle.open(other) as second:
        keep_engine(bundle, KEY, PLAN)
        member = member_name(bundle, KEY)
        # Under its own name, and under the name that the other would have.
        update_bundle(other, {member: PLAN}, {member: KEY})
        shutil.copy(engine_path(bundle, KEY), engine_path(second, KEY))
    assert found(other) == []
    assert found(bundle_path) == [PLAN, PLAN]


def test_a_key_that_does_not_match_its_name_is_not_used(bundle: Bundle) -> None:
    member = member_name(bundle, KEY)
    update_bundle(bundle.path, {member: PLAN}, {member: msgspec.structs.replace(KEY, version="10.3.1")})
    assert found(bundle.path) == []


def test_no_engine_of_a_signed_bundle_is_used(bundle_path: Path) -> None:
    put(bundle_path)
    signature = Signature("ed25519", "00" * 32, "00" * 64)
    update_bundle(bundle_path, {SIGNATURE: msgspec.json.encode(signature)})
    assert found(bundle_path) == []
    with Bundle.open(bundle_path) as bundle:
        keep_engine(bundle, KEY, b"this machine's own")
    assert found(bundle_path) == [b"this machine's own"]


def test_no_engine_of_an_unchecked_bundle_is_used(bundle_path: Path) -> None:
    put(bundle_path)
    assert found(bundle_path, verify=False) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_is_found(bundle_path: Path, data: st.DataObject) -> None:
    with Bundle.open(bundle_path) as bundle:
        path = keep_engine(bundle, KEY, PLAN)
        whole = path.read_bytes()
        kind = data.draw(st.sampled_from(["flipped", "cut", "longer", "other"]))
        at = data.draw(st.integers(0, len(whole) - 1))
        torn = {
            "flipped": whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
            "cut": whole[:at],
            "longer": whole + whole[at:],
            "other": data.draw(st.binary(max_size=200)),
        }[kind]
        path.write_bytes(torn)
        assert list(find_engine(bundle, KEY)) == []
        path.write_bytes(whole)
        assert [each.plan for each in find_engine(bundle, KEY)] == [PLAN]


def test_a_damaged_member_is_refused_with_its_bundle(bundle_path: Path) -> None:
    put(bundle_path)
    content = bundle_path.read_bytes()
    at = content.index(PLAN)
    bundle_path.write_bytes(content[: at + 9] + b"?" + content[at + 10 :])
    with pytest.raises(BundleError, match="engine"):
        Bundle.open(bundle_path)


def test_a_cache_that_others_can_write_is_neither_read_nor_written(bundle: Bundle) -> None:
    path = keep_engine(bundle, KEY, PLAN)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o707):
        path.parent.chmod(mode)
        assert list(find_engine(bundle, KEY)) == []
        with pytest.raises(OSError, match="may be written by others"):
            keep_engine(bundle, KEY, PLAN)
    path.parent.chmod(0o755)
    assert len(list(find_engine(bundle, KEY))) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give a folder away")
def test_a_cache_of_somebody_else_is_not_read(bundle: Bundle) -> None:
    path = keep_engine(bundle, KEY, PLAN)
    os.chown(path.parent, 12345, 12345)
    assert list(find_engine(bundle, KEY)) == []


def test_timings_are_of_one_device_and_version(own_cache: Path) -> None:
    assert read_timing(KEY) == b""
    keep_timing(KEY, b"learnt")
    # Whatever the graph, its precision, or the accelerator.
    assert read_timing(machine_key(ORIN, "10.3.0", "fp32", dla=0)) == b"learnt"
    assert read_timing(machine_key(ORIN, "10.3.1", "fp16")) == b""
    assert read_timing(machine_key(DeviceFacts("Thor", (8, 7), True, 1), "10.3.0", "fp16")) == b""
    (file,) = (own_cache / "timing").iterdir()
    keep_timing(machine_key(ORIN, "11.4.0.106", "fp16"), b"another version's")
    (other,) = set((own_cache / "timing").iterdir()) - {file}
    # Under the name of the other's.
    shutil.copy(other, file)
    assert read_timing(KEY) == b""
    keep_timing(KEY, b"learnt")
    file.write_bytes(file.read_bytes()[:-1])
    assert read_timing(KEY) == b""


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "redi-edge"
