"""A PLC that is an OPC UA client with certificate and password, at the nodes of the exported tag list."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from edge.bridges.passwords import Users
from edge.commands import bridge
from tests.edge.bridges.modbus_plc import Scan, Values

_VARIANTS = {
    "BOOL": ua.VariantType.Boolean,
    "UINT": ua.VariantType.UInt16,
    "UDINT": ua.VariantType.UInt32,
    "DINT": ua.VariantType.Int32,
}
# What its program looks at.
USED = ("Ready", "TriggerAck", "ResultValid", "Error", "Heartbeat", "CommandEcho", "PartId", "Verdict")
# As long as a PLC's own client waits for an answer.
_TIMEOUT_S = 0.5
# What a new connection costs a bridge that is just starting is not to slow it down.
_RETRY_S = 0.1


def exported_tags() -> list[dict[str, str]]:
    """What `edge-bridge tags --csv` tells a PLC programmer."""
    text = io.StringIO()
    with redirect_stdout(text):
        assert bridge.main(["tags", "--protocol", "opcua", "--csv"]) == 0
    return list(csv.DictReader(io.StringIO(text.getvalue())))


def certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate as OPC UA wants it, and its key."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:test:{name}")]), False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(paths[0]), str(paths[1])


class Credentials(NamedTuple):
    """What a client needs to be let in."""

    certificate_file: str
    key_file: str
    user: str
    password: str


def admit_a_plc(folder: Path) -> tuple[Credentials, dict[str, str]]:
    """Make certificates and a user; return the PLC's, and the keys of `bridge.toml` that let it in, and nobody else."""
    trusted = folder / "trusted"
    trusted.mkdir()
    own, own_key = certificate(folder, "server")
    credentials = Credentials(*certificate(trusted, "plc"), "line1", "the-secret-word")
    users = Users({})
    users.put(credentials.user, credentials.password)
    users.save(folder / "users")
    keys = {"certificate_file": own, "key_file": own_key, "trusted": str(trusted), "users_file": str(folder / "users")}
    # The key is no certificate.
    key = Path(credentials.key_file)
    return credentials._replace(key_file=str(key.rename(folder / key.name))), keys


class OpcUaPlc:
    """Reads and writes the signals in turn; its program runs on, whether or not there is a connection."""

    def __init__(self, scan: Scan, port: int, credentials: Credentials, period_s: float = 0.005) -> None:
        self._scan, self._port, self._credentials, self._period_s = scan, port, credentials, period_s
        tags = exported_tags()
        self._reads = [tag for tag in tags if tag["written by"] == "station" and tag["name"] in USED]
        self._writes = [tag for tag in tags if tag["written by"] == "PLC"]
        self._seen: Values = {tag["name"]: 0 for tag in self._reads}
        self._written: Values = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._run, self._communicate)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            self._written = self._scan(self._seen)

    def _communicate(self) -> None:
        asyncio.run(self._keep_connected())

    async def _keep_connected(self) -> None:
        while not self._stop.is_set():
            # As a PLC: try again.
            with suppress(Exception):
                async with self._connected() as client:
                    await self._exchange(client)
            await asyncio.sleep(_RETRY_S)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        client = Client(f"opc.tcp://127.0.0.1:{self._port}/redi/", timeout=_TIMEOUT_S, watchdog_intervall=60)
        client.set_user(self._credentials.user)
        client.set_password(self._credentials.password)
        client.application_uri = "urn:test:plc"
        await client.set_security(
            SecurityPolicyBasic256Sha256,
            self._credentials.certificate_file,
            self._credentials.key_file,
            mode=ua.MessageSecurityMode.SignAndEncrypt,
        )
        try:
            await client.connect()
            yield client
        finally:
            await client.disconnect()

    async def _exchange(self, client: Client) -> None:
        reads = [client.get_node(tag["address"]) for tag in self._reads]
        writes = [client.get_node(tag["address"]) for tag in self._writes]
        before: list[ua.Variant | None] = [None] * len(writes)
        while not self._stop.is_set():
            values = await client.read_values(reads)
            self._seen = {tag["name"]: value for tag, value in zip(self._reads, values, strict=True)}
            written = self._written
            now = [_variant(tag, written) for tag in self._writes]
            changed = [index for index, value in enumerate(now) if value != before[index]]
            await client.write_values([writes[index] for index in changed], [now[index] for index in changed])
            before = list(now)
            await asyncio.sleep(self._period_s)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def _variant(tag: dict[str, str], values: Values) -> ua.Variant:
    value: Any = values.get(tag["name"], 0)
    return ua.Variant(bool(value) if tag["type"] == "BOOL" else value, _VARIANTS[tag["type"]])
