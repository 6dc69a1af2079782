"""Verification of codes that users enter, with limited attempts.

Three of a million codes are valid at any time. The limit per account allows 480 attempts a day, so
that guessing takes more than half a year on average, and someone who knows the password cannot try
faster with more addresses. Browsers that the user has logged in with have limits of their own, so
that this someone does not lock the owner out.
"""

from app.extensions import database
from app.user import devices
from app.user.audit_trail import Event
from app.user.models import User
from app.user.two_factor import enrolment, recovery_codes, totp
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_client

# Attempts per account: from one client, and from all clients together.
CLIENT_CODE_LIMIT = Limit("code-attempts", 5, 300)
ACCOUNT_CODE_LIMIT = Limit("all-code-attempts", 20, 3600)
# Recovery codes cannot be guessed. This limit keeps attempts cheap, and being separate, it lets an
# owner log in with one while another client exhausts the limits above.
RECOVERY_LIMIT = Limit("recovery-code-attempts", 10, 900)


async def check_code(user: User, code: str) -> bool:
    """Return whether a code of the authenticator app is right. It is then used up.

    Args:
        user: the user, who has already proved their password or is logged in.
        code: six ASCII digits.

    Raises:
        TooManyRequests: too many attempts. The exception has `retry_after`.
    """
    device = devices.known_device(user)
    subject = device or f"user {user.id} from {by_client()}"
    await CLIENT_CODE_LIMIT.require(subject)
    if device is None:
        await ACCOUNT_CODE_LIMIT.require(f"user {user.id}")
    async with database.write() as session:
        is_right = await enrolment.use_code(session, user.id, code)
        if not is_right:
            await audit.record(session, Event.CODE_REJECTED, user.id)
    if is_right:
        await CLIENT_CODE_LIMIT.reset(subject)  # typos do not add up
    return is_right


async def check_recovery_code(user: User, code: str) -> bool:
    """Return whether a recovery code is right. It is then used up.

    Raises:
        TooManyRequests: too many attempts. The exception has `retry_after`.
    """
    subject = devices.known_device(user) or f"user {user.id} from {by_client()}"
    await RECOVERY_LIMIT.require(subject)
    async with database.write() as session:
        is_right = await enrolment.use_recovery_code(session, user, code)
        if not is_right:
            await audit.record(session, Event.CODE_REJECTED, user.id)
    return is_right


async def check_any_code(user: User, text: str) -> bool:
    """Return whether a text is a right code of either kind.

    Raises:
        TooManyRequests: too many attempts. The exception has `retry_after`.
    """
    if code := totp.normalize(text):
        return await check_code(user, code)
    if code := recovery_codes.normalize(text):
        return await check_recovery_code(user, code)
    return False
