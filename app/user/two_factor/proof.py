"""A code as a proof of identity: see `app.user.proofs`."""

from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.datastructures import MultiDict

from app.user.models import User
from app.user.two_factor import enrolment, totp
from app.user.two_factor.verification import check_code

FIELD = "proof_code"


async def is_available(session: AsyncSession, user: User) -> bool:
    return await enrolment.is_enabled(session, user.id)


async def verify(user: User, form: MultiDict[str, str]) -> bool:
    """Return whether the form has a right code.

    Raises:
        TooManyRequests: too many attempts.
    """
    code = totp.normalize(form.get(FIELD, ""))
    return code is not None and await check_code(user, code)
