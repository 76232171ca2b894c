"""Who may connect to our OPC UA server, and how what is said is protected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncua import Server, ua
from asyncua.crypto import uacrypto
from asyncua.crypto.permission_rules import User, UserRole
from asyncua.ua.uaerrors import UaError
from cryptography import x509

from edge.bridges.passwords import Users, read_users
from edge.errors import BridgeError

if TYPE_CHECKING:
    from edge.bridges.protocols.opcua import OpcUaSettings

_SIGNED = [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt, ua.SecurityPolicyType.Basic256Sha256_Sign]


class _Doorkeeper:
    """What asyncua asks who may come in."""

    def __init__(self, users: Users, anonymous: bool) -> None:
        self._users, self._anonymous = users, anonymous

    def get_user(
        self, iserver: object, username: str | None = None, password: str | None = None, certificate: Any = None
    ) -> User | None:
        """Return the user, or None for one who is not let in."""
        if username is None:
            return User(role=UserRole.User) if self._anonymous else None
        if self._users.admit(username, _text(password)):
            return User(role=UserRole.User, name=username)
        return None


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
