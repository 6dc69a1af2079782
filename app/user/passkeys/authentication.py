"""Check the response of a passkey, for each purpose: log in, second factor, confirm identity."""

from typing import Any

from quart import Response, current_app, jsonify

from app.extensions import database
from app.user.audit_trail import Event
from app.user.passkeys import ceremonies, challenges, queries
from app.user.passkeys.ceremonies import KnownPasskey, RefusedResponseError
from app.user.passkeys.challenges import InvalidChallengeError
from app.user.passkeys.relying_party import RelyingParty
from quart_upsun.logging import get_logger
from quart_upsun.security import audit

log = get_logger(__name__)


class AuthenticationError(Exception):
    """The passkey was refused. The message is meant for the user."""


EXPIRED = "This took too long, or the page was opened in another browser. Try again."
UNKNOWN = "This passkey is not registered for this account. It may have been removed."
REFUSED = "This passkey could not be verified. Try again, or log in another way."
COPIED = (
    "This passkey was refused, because a copy of it may be in use. Log in another way, remove the"
    " passkey and add a new one."
)


def relying_party() -> RelyingParty:
    """Return the relying party of this site."""
    party: RelyingParty = current_app.extensions["passkeys"]
    return party


async def send_options(options: dict[str, Any], token: str, nonce: str) -> Response:
    """Return the options and the challenge's token to the script, with the browser's cookie."""
    response = jsonify(options=options, token=token)
    challenges.remember_nonce(response, nonce)
    return response


async def request_options(
    purpose: str, subject: str, allowed: list[KnownPasskey] | None = None
) -> Response:
    """Return the options to ask for a passkey.

    Args:
        purpose: what it is for.
        subject: the session or pending login; empty for a login.
        allowed: the user's passkeys, if the user is known.
    """
    nonce = challenges.browser_nonce()
    challenge = challenges.issue(purpose, subject, nonce)
    options = await ceremonies.authentication_options(
        relying_party(), challenge=challenge.value, allowed=allowed or []
    )
    return await send_options(options, challenge.token, nonce)


async def use_challenge(token: str, purpose: str, subject: str) -> bytes:
    """Return the challenge of a token, which is not accepted again, whatever the answer is.

    Raises:
        AuthenticationError: the challenge is not valid.
    """
    try:
        value = challenges.read(token, purpose, subject)
        async with database.write() as session:
            await challenges.use(session, value)
    except InvalidChallengeError:
        raise AuthenticationError(EXPIRED) from None
    return value


async def authenticate(
    *, response: str, token: str, purpose: str, subject: str, user_id: int | None = None
) -> int:
    """Verify the response of a passkey, record its use, and return the id of its owner.

    Args:
        response: the credential in its JSON form.
        token: the token of the challenge.
        purpose: what the challenge was issued for.
        subject: the session or pending login it was issued for.
        user_id: the user who must own the passkey; None for a login without a username.

    Raises:
        MalformedResponseError: the response is not the JSON form of a credential.
        AuthenticationError: the passkey is refused.
    """
    assertion = await ceremonies.parse_assertion(response)
    challenge = await use_challenge(token, purpose, subject)
    party = relying_party()
    async with database.read(exact=True) as session:
        found = await queries.find_passkey(session, assertion.credential_id, party.id)
    is_login = user_id is None
    if found is None or not (is_login or found.user_id == user_id):
        await _record_failure(purpose, user_id)
        raise AuthenticationError(UNKNOWN)
    try:
        # Without a username the handle names the user, so it must be there and match.
        if assertion.user_handle != found.handle and (is_login or assertion.user_handle):
            raise RefusedResponseError("user handle of another user")
        used = await ceremonies.verify_assertion(
            party, assertion=assertion, challenge=challenge, public_key=found.public_key
        )
    except RefusedResponseError as error:
        log.info("passkey refused", reason=str(error))
        await _record_failure(purpose, found.user_id)
        raise AuthenticationError(REFUSED) from None
    try:
        async with database.write() as session:
            await queries.record_use(session, found.id, used)
    except queries.CounterError:
        log.warning("passkey counter did not increase")
        async with database.write() as session:
            await audit.record(session, Event.PASSKEY_REFUSED, found.user_id)
        raise AuthenticationError(COPIED) from None
    return found.user_id


async def _record_failure(purpose: str, user_id: int | None) -> None:
    if purpose == challenges.PROVE:
        return  # the user is logged in already
    async with database.write() as session:
        await audit.record(session, Event.LOGIN_FAILED, user_id)
