"""Confirm the identity of a logged-in user with a passkey; see `app.user.proofs`."""

from werkzeug.datastructures import MultiDict

from app.user.models import User
from app.user.passkeys import challenges
from app.user.passkeys.authentication import AuthenticationError, authenticate
from app.user.passkeys.ceremonies import MalformedResponseError
from app.user.passkeys.views import subject

RESPONSE_FIELD, TOKEN_FIELD = "proof_passkey_response", "proof_passkey_token"


async def verify_proof(user: User, form: MultiDict[str, str]) -> bool:
    """Return whether the submitted form has the response of one of the user's passkeys."""
    if not form.get(RESPONSE_FIELD):
        return False
    try:
        await authenticate(
            response=form[RESPONSE_FIELD],
            token=form.get(TOKEN_FIELD, ""),
            purpose=challenges.PROVE,
            subject=subject(),
            user_id=user.id,
        )
    except (AuthenticationError, MalformedResponseError):
        return False
    return True
