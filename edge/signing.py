"""Signed bundles: whose hand a bundle's verdicts come from.

Signed, with Ed25519, is the manifest: specs, provenance, and size and SHA-256 of every member, the network, the
prompts, the golden frames and the calibration among them.  Left out are the signature itself and the engines, which
any machine may compile and add; no engine of a signed bundle is therefore used, but one from the machine's own cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from edge.bundle import ENGINES, SIGNATURE, Bundle, update_bundle
from edge.container import MANIFEST
from edge.errors import BundleError, KeysError
from edge.keys import KeyFolder, KeyPair, Kind, PublicKey
from edge.manifest import Signature

#: What goes before the statement, so that a signature of anything else can never be taken for one of a bundle.
DOMAIN = b"redi-edge bundle signature 1\0"


def statement(bundle: Bundle) -> bytes:
    """Return the bytes that are signed: `DOMAIN`, then the manifest less engines and signature.

    As JSON in one form only: keys sorted, no white space, ASCII.
    """
    # Decoded by the decoder that the station obeys: no second reader, no second meaning.
    manifest: dict[str, Any] = msgspec.json.decode(bundle.read(MANIFEST))
    manifest.pop("engines", None)
    members = manifest["members"]
    manifest["members"] = {
        name: members[name] for name in members if name != SIGNATURE and not name.startswith(ENGINES)
    }
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return DOMAIN + text.encode("ascii")


def sign_bundle(path: Path | str, pair: KeyPair) -> str:
    """Sign a bundle, atomically, in the place of a signature that it had; return its bundle id.

    Raises:
        BundleError: no whole bundle, or it cannot be written.
        KeysError: the pair is not one for signing.
    """
    if pair.public.kind is not Kind.SIGN:
        raise KeysError(
            f"{pair.public.name} is a key for connecting", "edge-keys make NAME --sign makes one for signing"
        )
    from nacl.signing import SigningKey

    with Bundle.open(path) as bundle:
        signature = SigningKey(pair.secret).sign(statement(bundle)).signature
        bundle_id = bundle.bundle_id
    member = Signature(pair.public.kind.value, pair.public.raw.hex(), signature.hex())
    update_bundle(path, {SIGNATURE: msgspec.json.encode(member)})
    return bundle_id


def check_signature(bundle: Bundle) -> PublicKey:
    """Return the key that has signed the bundle, be it allowed here or not; its name is empty.

    Raises:
        BundleError: the bundle is unsigned, or is not what was signed.
    """
    if not bundle.verified:
        raise ValueError(f"{bundle.path} was opened without its digests being checked: a signature covers only them")
    signature = bundle.signature
    if signature is None:
        raise BundleError(f"{bundle.path}: not signed", f"where it was made: edge-bundle sign {bundle.path}")
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    try:
        if signature.algorithm != Kind.SIGN.value:
            raise ValueError(f"unknown algorithm {signature.algorithm!r}")
        key, seal = bytes.fromhex(signature.key), bytes.fromhex(signature.signature)
        VerifyKey(key).verify(statement(bundle), seal)
    except (BadSignatureError, ValueError, TypeError) as error:
        raise BundleError(
            f"{bundle.path}: its signature is wrong: the bundle is not what was signed",
            "copy it again from where it was signed, or sign it again if the change was meant",
        ) from error
    return PublicKey(Kind.SIGN, key, "")


def require_signature(bundle: Bundle, folder: KeyFolder) -> PublicKey:
    """Return the allowed key, with its name here, that has signed the bundle.

    Raises:
        BundleError: the bundle is unsigned, is not what was signed, or was signed by a key that is not allowed here.
        KeysError: the folder of allowed keys cannot be used.
    """
    signer = check_signature(bundle)
    for key in folder.allowed(Kind.SIGN):
        if key == signer:
            return key
    raise BundleError(
        f"{bundle.path}: signed by {signer.text}, which is not allowed here",
        f"if you know that this is the right key: edge-keys allow {signer.text} --keys {folder.path}",
    )
