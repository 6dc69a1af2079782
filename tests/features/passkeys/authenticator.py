"""A software authenticator: it answers the options of the site as a browser and a device would.

Tests change one property of it, or one argument, for each response that the site must refuse.
"""

import hashlib
import json
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

ORIGIN = "http://localhost:8000"  # that of an application with default settings
PRESENT, VERIFIED, ATTESTED = 0x01, 0x04, 0x40  # flags of the authenticator data


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "==")


@dataclass
class Authenticator:
    """An authenticator with one passkey.

    Attributes:
        origin: the page that the browser reports.
        rp_id: the host that the authenticator signs; by default the one in the options.
        counter: the signature counter of the next response; 0 stays 0, as for synced passkeys.
        is_user_verified: whether it verifies the user.
    """

    origin: str = ORIGIN
    rp_id: str | None = None
    counter: int = 1
    is_user_verified: bool = True
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    handle: bytes = b""

    def create(self, options: dict[str, Any], **client: str) -> dict[str, Any]:
        """Answer the options of a registration. `client` changes the client data."""
        self.handle = decode(options["user"]["id"])
        numbers = self.key.public_key().public_numbers()
        public_key = cbor2.dumps(
            {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32), -3: numbers.y.to_bytes(32)}
        )
        data = (
            self._data(self.rp_id or options["rp"]["id"], ATTESTED)
            + bytes(16)
            + len(self.credential_id).to_bytes(2)
            + self.credential_id
            + public_key
        )
        attestation = cbor2.dumps({"fmt": "none", "attStmt": {}, "authData": data})
        return self._credential(
            clientDataJSON=encode(self._client("webauthn.create", options, client)),
            attestationObject=encode(attestation),
            transports=["internal", "hybrid"],
        )

    def get(self, options: dict[str, Any], **client: str) -> dict[str, Any]:
        """Answer the options of an authentication. `client` changes the client data."""
        data = self._data(self.rp_id or options["rpId"])
        client_data = self._client("webauthn.get", options, client)
        signed = data + hashlib.sha256(client_data).digest()
        return self._credential(
            clientDataJSON=encode(client_data),
            authenticatorData=encode(data),
            signature=encode(self.key.sign(signed, ec.ECDSA(SHA256()))),
            userHandle=encode(self.handle),
        )

    def _client(self, kind: str, options: dict[str, Any], changes: dict[str, str]) -> bytes:
        content = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps(content | changes).encode()

    def _data(self, rp_id: str, flags: int = 0) -> bytes:
        flags |= PRESENT | (VERIFIED if self.is_user_verified else 0)
        count = self.counter
        self.counter += 1 if count else 0
        return hashlib.sha256(rp_id.encode()).digest() + bytes([flags]) + count.to_bytes(4)

    def _credential(self, **response: Any) -> dict[str, Any]:
        identifier = encode(self.credential_id)
        return {
            "id": identifier,
            "rawId": identifier,
            "type": "public-key",
            "clientExtensionResults": {},
            "response": response,
        }
