"""Who may connect to our OPC UA server, and how what is said is protected."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncua import Server, ua
from asyncua.crypto import uacrypto
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.server import binary_server_asyncio
from asyncua.server.uaprocessor import UaProcessor
from asyncua.ua.ua_binary import nodeid_from_binary, struct_from_binary
from asyncua.ua.uaerrors import UaError
from cryptography import x509

from edge.bridges.passwords import Users, read_users
from edge.errors import BridgeError

if TYPE_CHECKING:
    from edge.bridges.protocols.opcua import OpcUaSettings

_SIGNED = [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt, ua.SecurityPolicyType.Basic256Sha256_Sign]


_MAX_FOUND = 100
_ACTIVATE = ua.NodeId(ua.ObjectIds.ActivateSessionRequest_Encoding_DefaultBinary)


class _Doorkeeper:
    """What asyncua asks who may come in; in the event loop, which a hash would hold up for some 50 ms."""

    def __init__(self, users: Users, anonymous: bool) -> None:
        self._users, self._anonymous = users, anonymous
        # Found out beforehand in a thread, for one question each.
        self._key = secrets.token_bytes(32)
        self._found: dict[bytes, bool] = {}

    async def find_out(self, username: str, password: str) -> None:
        """Check a password in a thread: `get_user` for the same one then knows at once."""
        admitted = await asyncio.to_thread(self._users.admit, username, password)
        if len(self._found) >= _MAX_FOUND:
            # Of those who were refused for another reason before we were asked.
            self._found.clear()
        self._found[self._question(username, password)] = admitted

    def _question(self, username: str, password: str) -> bytes:
        return hashlib.blake2b(f"{username}\0{password}".encode("utf-8", "replace"), key=self._key).digest()

    def get_user(
        self, iserver: object, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> User | None:
        """Return the user, or None for one who is not let in."""
        if username is None:
            return User(role=UserRole.User) if self._anonymous else None
        admitted = self._found.pop(self._question(username, _text(password)), None)
        if admitted is None:
            admitted = self._users.admit(username, _text(password))
        return User(role=UserRole.User, name=username) if admitted else None


class _Processor(UaProcessor):  # type: ignore[misc]
    """One connection, whose passwords are checked in a thread; where that is not possible, they are in the loop."""

    async def process_message(self, seqhdr: Any, body: Any) -> Any:
        """Process a request."""
        doorkeeper, session = self.iserver.user_manager, self.session
        peek = body.copy()
        if isinstance(doorkeeper, _Doorkeeper) and session is not None and nodeid_from_binary(peek) == _ACTIVATE:
            try:
                struct_from_binary(ua.RequestHeader, peek)
                token = struct_from_binary(ua.ActivateSessionParameters, peek).UserIdentityToken
                known = isinstance(token, ua.UserNameIdentityToken)
                name, password = self.iserver.decrypt_user_token(session, token) if known else ("", "")
            except Exception:  # noqa: BLE001  asyncua answers what cannot be read, whatever it is
                known = False
            if known:
                await doorkeeper.find_out(name or "", _text(password))
        return await super().process_message(seqhdr, body)


# asyncua has no other place to say so.
binary_server_asyncio.UaProcessor = _Processor


def _text(password: str | bytes | None) -> str:
    return password.decode("utf-8", "replace") if isinstance(password, bytes) else password or ""


async def secure(server: Server, settings: OpcUaSettings) -> None:
    """Set certificate, policies and users of a server that has not started.

    Raises:
        BridgeError: a file is missing or none; names it.
    """
    users = read_users(Path(settings.users_file)) if settings.users_file else Users({})
    server.iserver.set_user_manager(_Doorkeeper(users, settings.admits_anonymous))
    tokens: list[type] = [ua.AnonymousIdentityToken] if settings.admits_anonymous else []
    if settings.users_file:
        tokens.append(ua.UserNameIdentityToken)
    server.set_identity_tokens(tokens)
    uri = "urn:redi-edge:station"
    if settings.certificate_file:
        certificate = await _load(settings.certificate_file)
        try:
            server.iserver.certificate = certificate
            key = Path(settings.key_file).read_bytes()
            await server.load_private_key(key, format=_format(key))
        except (OSError, ValueError, TypeError) as error:
            raise BridgeError(f"{settings.key_file}: no private key that can be used: {error}") from error
        uri = _uri_of(certificate) or uri
        server.set_security_policy(_SIGNED)
    else:
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    await server.set_application_uri(uri)
    if settings.trusted:
        trusted = await _trusted(Path(settings.trusted))

        async def check(certificate: x509.Certificate, description: object) -> None:
            if uacrypto.der_from_x509(certificate) not in trusted:
                raise UaError(ua.StatusCodes.BadCertificateUntrusted)

        server.set_certificate_validator(check)


async def _trusted(folder: Path) -> set[bytes]:
    files = sorted(each for each in folder.glob("*") if each.suffix in (".pem", ".der", ".crt"))
    if not files:
        raise BridgeError(f"{folder}: there is no certificate", "put the clients' .der or .pem files there")
    return {uacrypto.der_from_x509(await _load(str(each))) for each in files}


async def _load(path: str) -> x509.Certificate:
    try:
        data = Path(path).read_bytes()
        certificate: x509.Certificate = await uacrypto.load_certificate(data, _format(data))
        return certificate
    except (OSError, ValueError) as error:
        raise BridgeError(f"{path}: no certificate that can be used: {error}", "it must be PEM or DER") from error


def _format(data: bytes) -> str:
    return "pem" if b"-----BEGIN" in data else "der"


def _uri_of(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if uris else ""
