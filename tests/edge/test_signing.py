"""Signed bundles: what a signature covers, and what breaks it."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, tzinfo
from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey

from edge.bundle import SIGNATURE, Bundle, set_calibration, update_bundle, write_bundle
from edge.container import MANIFEST, write_container
from edge.errors import BundleError, KeysError
from edge.keys import KeyFolder, KeyPair, Kind
from edge.manifest import Calibration, EngineKey, Signature
from edge.signing import DOMAIN, check_signature, require_signature, sign_bundle, statement

RULE = Calibration(0.5, 0.4, 0.001, 0.03, 0.95, 100, "tolerance", "2026-01-01", 0.2, 0.05, 0.4, 7, 0.25)
ENGINE = EngineKey("tensorrt", "sm_87", "10.3", "fp16")


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "keys")
    folder.allow(folder.make("release", Kind.SIGN))
    return folder


@pytest.fixture
def pair(folder: KeyFolder) -> KeyPair:
    return folder.pair(Kind.SIGN)


@pytest.fixture(autouse=True)
def one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The date is signed too: here it never differs, so that each test sees its own change alone."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr("edge.bundle.datetime", Clock)


@pytest.fixture
def signed(one_moment: None, bundle_path: Path, pair: KeyPair) -> Path:
    set_calibration(bundle_path, RULE)
    sign_bundle(bundle_path, pair)
    return bundle_path


def refusal(path: Path, folder: KeyFolder) -> str:
    with Bundle.open(path) as bundle, pytest.raises(BundleError) as caught:
        require_signature(bundle, folder)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.problem


def test_signing_changes_no_identity_and_is_recognised(bundle_path: Path, folder: KeyFolder, pair: KeyPair) -> None:
    set_calibration(bundle_path, RULE)
    with Bundle.open(bundle_path) as bundle:
        before = (bundle.bundle_id, bundle.calibration_id, bundle.manifest.created)
        assert bundle.signature is None
    assert "not signed" in refusal(bundle_path, folder)
    assert sign_bundle(bundle_path, pair) == before[0]
    for _ in range(2):
        with Bundle.open(bundle_path) as bundle:
            assert (bundle.bundle_id, bundle.calibration_id, bundle.manifest.created) == before
            signer = require_signature(bundle, folder)
            assert (signer, signer.name) == (pair.public, "release")
        # Signing twice is signing.
        sign_bundle(bundle_path, pair)


def test_the_signature_is_plain_ed25519_of_the_documented_bytes(signed: Path, pair: KeyPair) -> None:
    with Bundle.open(signed) as bundle:
        manifest = json.loads(bytes(bundle.read(MANIFEST)))
        signature = json.loads(bytes(bundle.read(SIGNATURE)))
        del manifest["engines"], manifest["members"][SIGNATURE]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        assert statement(bundle) == b"redi-edge bundle signature 1\0" + text.encode()
        assert {"core.onnx", "calibration.json", "golden.json", "golden/good 1.png"} <= manifest["members"].keys()
    made = SigningKey(pair.secret).sign(DOMAIN + text.encode()).signature
    assert signature == {"algorithm": "ed25519", "key": pair.public.raw.hex(), "signature": made.hex()}


@pytest.mark.parametrize(
    "member", ["core.onnx", "calibration.json", "golden.json", "prompts/names.json", "trained.json"]
)
def test_every_member_that_decides_is_covered(signed: Path, folder: KeyFolder, member: str) -> None:
    other = {
        "core.onnx": b"another graph",
        "calibration.json": msgspec.json.encode(msgspec.structs.replace(RULE, threshold=0.9)),
        "golden.json": b'{"tolerance":0.5,"frames":[{"name":"good 1","score":0.25,"peak":0.5}]}',
        "prompts/names.json": b'["a.png","b.png","c.png"]',
        "trained.json": b"[]",
    }[member]
    with Bundle.open(signed) as bundle:
        members = {name: bytes(bundle.read(name)) for name in bundle.members}
        model, provenance = bundle.manifest.model, bundle.manifest.provenance
    write_bundle(signed, model=model, members={**members, member: other}, provenance=provenance)
    assert "is not what was signed" in refusal(signed, folder)


def test_the_specs_and_the_provenance_are_covered(signed: Path, folder: KeyFolder) -> None:
    with Bundle.open(signed) as bundle:
        members = {name: bytes(bundle.read(name)) for name in bundle.members}
        model, provenance = bundle.manifest.model, bundle.manifest.provenance
    compare = msgspec.structs.replace(model.compare, top_k=9)
    write_bundle(signed, model=msgspec.structs.replace(model, compare=compare), members=members, provenance=provenance)
    assert "is not what was signed" in refusal(signed, folder)
    write_bundle(signed, model=model, members=members, provenance={"seed": "8"})
    assert "is not what was signed" in refusal(signed, folder)


def test_an_engine_may_be_added_and_a_calibration_takes_the_signature_away(signed: Path, folder: KeyFolder) -> None:
    update_bundle(signed, {"engines/a.engine": b"engine"}, {"engines/a.engine": ENGINE})
    with Bundle.open(signed) as bundle:
        assert require_signature(bundle, folder).name == "release"
        assert "engines/a.engine" in bundle.manifest.engines
    set_calibration(signed, RULE)
    with Bundle.open(signed) as bundle:
        assert bundle.signature is None
        assert bundle.manifest.engines == {"engines/a.engine": ENGINE}
    assert "not signed" in refusal(signed, folder)


def test_a_bundle_of_a_release_with_fewer_fields_stays_signed(signed: Path, pair: KeyPair, folder: KeyFolder) -> None:
    """What this release adds by default must not enter what was signed: it is not in the file."""
    with Bundle.open(signed) as bundle:
        document = msgspec.json.decode(bundle.read(MANIFEST))
        del document["model"]["canvas"]
        members = {MANIFEST: msgspec.json.encode(document)}
        members |= {name: bytes(bundle.read(name)) for name in bundle.members if name != SIGNATURE}
        del document["members"][SIGNATURE]
        members[MANIFEST] = msgspec.json.encode(document)
    with signed.open("wb") as file:
        write_container(file, members)
    with Bundle.open(signed) as bundle:
        identity = bundle.bundle_id
    assert sign_bundle(signed, pair) == identity
    update_bundle(signed, {"engines/a.engine": b"engine"}, {"engines/a.engine": ENGINE})
    with Bundle.open(signed) as bundle:
        assert require_signature(bundle, folder).name == "release"
        assert bundle.bundle_id == identity


def test_keys_that_are_not_allowed(signed: Path, folder: KeyFolder, pair: KeyPair) -> None:
    folder.revoke("release")
    problem = refusal(signed, folder)
    assert pair.public.text in problem
    assert "not allowed here" in problem
    with Bundle.open(signed) as bundle:
        assert check_signature(bundle) == pair.public
    # A key for connecting, be it the same bytes, is none for signing.
    folder.allow(type(pair.public)(Kind.CONNECT, pair.public.raw, "same"))
    assert "not allowed here" in refusal(signed, folder)
    folder.make("station", Kind.CONNECT)
    with pytest.raises(KeysError, match="for connecting"):
        sign_bundle(signed, folder.pair(Kind.CONNECT))


@pytest.mark.parametrize(
    "forged",
    [
        {"algorithm": "none"},
        {"algorithm": "ED25519"},
        {"key": ""},
        {"key": "00" * 32},
        {"key": "01" + "00" * 31},
        {"key": "zz" * 32},
        {"signature": ""},
        {"signature": "00" * 64},
        {"signature": "ab"},
        {"signature": "ä"},
    ],
)
def test_forged_signatures_are_refused(signed: Path, folder: KeyFolder, forged: dict[str, str]) -> None:
    with Bundle.open(signed) as bundle:
        assert bundle.signature is not None
        member = msgspec.structs.replace(bundle.signature, **forged)
    update_bundle(signed, {SIGNATURE: msgspec.json.encode(member)})
    assert "its signature is wrong" in refusal(signed, folder)


def test_a_signature_of_another_bundle_does_not_fit(
    signed: Path, folder: KeyFolder, tmp_path: Path, pair: KeyPair
) -> None:
    other = tmp_path / "other.plan"
    shutil.copyfile(signed, other)
    set_calibration(other, msgspec.structs.replace(RULE, threshold=0.45))
    with Bundle.open(signed) as bundle:
        member = bytes(bundle.read(SIGNATURE))
    update_bundle(other, {SIGNATURE: member})
    assert "its signature is wrong" in refusal(other, folder)
    # Nor does one of the same text without the domain.
    with Bundle.open(signed) as bundle:
        bare = SigningKey(pair.secret).sign(statement(bundle).removeprefix(DOMAIN)).signature
    member = msgspec.json.encode(Signature("ed25519", pair.public.raw.hex(), bare.hex()))
    update_bundle(signed, {SIGNATURE: member})
    assert "its signature is wrong" in refusal(signed, folder)


def test_a_malformed_signature_member_is_an_invalid_bundle(signed: Path) -> None:
    for data in (b"", b"[]", b'{"algorithm":1}', b'{"algorithm":"ed25519","key":"","signature":"","more":1}', b"\xff"):
        with pytest.raises(BundleError, match=r"signature\.json"):
            update_bundle(signed, {SIGNATURE: data})


def test_digests_that_were_not_checked_are_not_vouched_for(signed: Path) -> None:
    with Bundle.open(signed, verify=False) as bundle, pytest.raises(ValueError, match="digests"):
        check_signature(bundle)
