"""The two ceremonies of WebAuthn, with the library `webauthn`: registration and authentication.

The functions neither use the database nor know the request. They run in threads, because the first
call imports the library, which takes a third of a second.
https://www.w3.org/TR/webauthn-3/#sctn-rp-operations
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.user.passkeys.challenges import LIFETIME_SECONDS
from app.user.passkeys.relying_party import RelyingParty

if TYPE_CHECKING:
    from webauthn.helpers.structs import PublicKeyCredentialDescriptor

TIMEOUT_MILLISECONDS = LIFETIME_SECONDS * 1000
MAX_RESPONSE_LENGTH = 32 * 1024  # characters; attestations with certificates have some thousand
MAX_CREDENTIAL_ID_BYTES = 1023  # https://www.w3.org/TR/webauthn-3/#credential-id


class MalformedResponseError(ValueError):
    """The response is not the JSON form of a credential. No browser sends that."""


class RefusedResponseError(Exception):
    """The response is well-formed, but is not valid. The message is for the log."""


@dataclass(frozen=True)
class KnownPasskey:
    """A passkey that the browser may use, or must not create again."""

    credential_id: bytes
    transports: Sequence[str] = ()


@dataclass(frozen=True)
class Registered:
    """A new passkey."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    transports: list[str]
    is_backed_up: bool


@dataclass(frozen=True)
class Assertion:
    """A parsed response of an authentication, whose signature is not verified yet."""

    credential: dict[str, Any]
    credential_id: bytes
    user_handle: bytes | None


@dataclass(frozen=True)
class Authenticated:
    """The verified response of a passkey."""

    sign_count: int
    is_backed_up: bool


async def registration_options(
    party: RelyingParty,
    *,
    challenge: bytes,
    site_name: str,
    username: str,
    handle: bytes,
    existing: Sequence[KnownPasskey],
) -> dict[str, Any]:
    """Return the options for `navigator.credentials.create()`, in their JSON form.

    The passkey must be discoverable, so that it works without a username, and the authenticator
    must verify the user with a PIN or biometrics. No attestation is asked for: the model of an
    authenticator says something about its owner, and nothing depends on it.
    """
    return await asyncio.to_thread(
        _registration_options, party, challenge, site_name, username, handle, existing
    )


async def authentication_options(
    party: RelyingParty, *, challenge: bytes, allowed: Sequence[KnownPasskey]
) -> dict[str, Any]:
    """Return the options for `navigator.credentials.get()`, in their JSON form.

    Args:
        party: the relying party.
        challenge: the challenge.
        allowed: the passkeys of a known user; empty to let the browser offer all of this site.
    """
    return await asyncio.to_thread(_authentication_options, party, challenge, allowed)


async def verify_registration(
    party: RelyingParty, *, response: str, challenge: bytes
) -> Registered:
    """Verify the response of a registration, in its JSON form.

    Raises:
        MalformedResponseError: it is not the JSON form of a credential.
        RefusedResponseError: it is for another challenge, origin or host, or without user
            verification, or the key is not supported.
    """
    return await asyncio.to_thread(_verify_registration, party, response, challenge)


async def parse_assertion(response: str) -> Assertion:
    """Parse the response of an authentication, to find the passkey that verifies it.

    Raises:
        MalformedResponseError: it is not the JSON form of a credential.
    """
    return await asyncio.to_thread(_parse_assertion, response)


async def verify_assertion(
    party: RelyingParty, *, assertion: Assertion, challenge: bytes, public_key: bytes
) -> Authenticated:
    """Verify the signature of an authentication and what it signs. The caller checks the counter.

    Raises:
        RefusedResponseError: it is for another challenge, origin or host, without user
            verification, or the signature is wrong.
    """
    return await asyncio.to_thread(_verify_assertion, party, assertion, challenge, public_key)


def _registration_options(
    party: RelyingParty,
    challenge: bytes,
    site_name: str,
    username: str,
    handle: bytes,
    existing: Sequence[KnownPasskey],
) -> dict[str, Any]:
    from webauthn import generate_registration_options
    from webauthn.helpers import options_to_json_dict
    from webauthn.helpers.structs import (
        AuthenticatorSelectionCriteria,
        ResidentKeyRequirement,
        UserVerificationRequirement,
    )

    options = generate_registration_options(
        rp_id=party.id,
        rp_name=site_name,
        user_id=handle,
        user_name=username,
        challenge=challenge,
        timeout=TIMEOUT_MILLISECONDS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=_descriptors(existing),
    )
    return options_to_json_dict(options)


def _authentication_options(
    party: RelyingParty, challenge: bytes, allowed: Sequence[KnownPasskey]
) -> dict[str, Any]:
    from webauthn import generate_authentication_options
    from webauthn.helpers import options_to_json_dict
    from webauthn.helpers.structs import UserVerificationRequirement

    options = generate_authentication_options(
        rp_id=party.id,
        challenge=challenge,
        timeout=TIMEOUT_MILLISECONDS,
        allow_credentials=_descriptors(allowed),
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return options_to_json_dict(options)


def _descriptors(passkeys: Sequence[KnownPasskey]) -> "list[PublicKeyCredentialDescriptor]":
    from webauthn.helpers.structs import AuthenticatorTransport, PublicKeyCredentialDescriptor

    return [
        PublicKeyCredentialDescriptor(
            id=each.credential_id,
            transports=[AuthenticatorTransport(name) for name in each.transports] or None,
        )
        for each in passkeys
    ]


def _verify_registration(party: RelyingParty, response: str, challenge: bytes) -> Registered:
    from webauthn import verify_registration_response
    from webauthn.helpers import (
        decode_credential_public_key,
        decoded_public_key_to_cryptography,
        parse_registration_credential_json,
    )

    content = _load(response)
    try:
        credential = parse_registration_credential_json(content)
    except Exception as error:  # see `_refusal`
        raise MalformedResponseError from error
    try:
        verified = verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            require_user_verification=True,
        )
        # Without an attestation the library does not look at the key before it is used.
        decoded_public_key_to_cryptography(
            decode_credential_public_key(verified.credential_public_key)
        )
    except Exception as error:
        raise _refusal(error) from error
    if len(verified.credential_id) > MAX_CREDENTIAL_ID_BYTES:
        raise RefusedResponseError("credential id is too long")
    if verified.credential_id != credential.raw_id:
        raise RefusedResponseError("credential id differs from the one in the attestation")
    return Registered(
        credential_id=verified.credential_id,
        public_key=verified.credential_public_key,
        sign_count=verified.sign_count,
        transports=sorted({each.value for each in credential.response.transports or ()}),
        is_backed_up=verified.credential_backed_up,
    )


def _parse_assertion(response: str) -> Assertion:
    from webauthn.helpers import parse_authentication_credential_json

    content = _load(response)
    try:
        credential = parse_authentication_credential_json(content)
    except Exception as error:  # see `_refusal`
        raise MalformedResponseError from error
    return Assertion(content, credential.raw_id, credential.response.user_handle)


def _verify_assertion(
    party: RelyingParty, assertion: Assertion, challenge: bytes, public_key: bytes
) -> Authenticated:
    from webauthn import verify_authentication_response

    try:
        verified = verify_authentication_response(
            credential=assertion.credential,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            credential_public_key=public_key,
            # The library compares counters before it verifies the signature, so anyone could
            # forge a counter that seems to go back. The caller compares the signed one.
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except Exception as error:
        raise _refusal(error) from error
    return Authenticated(verified.new_sign_count, verified.credential_backed_up)


def _load(response: str) -> dict[str, Any]:
    """Return the members of a JSON object.

    Raises:
        MalformedResponseError: it is too long, not JSON, or not an object.
    """
    if len(response) > MAX_RESPONSE_LENGTH:
        raise MalformedResponseError("too long")
    try:
        content = json.loads(response)
    except (ValueError, RecursionError) as error:
        raise MalformedResponseError("not JSON") from error
    if not isinstance(content, dict):
        raise MalformedResponseError("not an object")
    return content


def _refusal(error: Exception) -> RefusedResponseError:
    """Return the error for a response that the library refuses.

    Hostile responses raise more than the library's own exceptions: KeyError, TypeError, ValueError
    and those of `cryptography`. They only compute on what the client sent, so all are refusals.
    Messages quote what the client sent, which is not for the log.
    """
    from webauthn.helpers.exceptions import WebAuthnException

    is_own = isinstance(error, WebAuthnException)
    return RefusedResponseError(
        str(error).partition('"')[0].strip() if is_own else type(error).__name__
    )
