"""The audit event of an adopted account."""

from sqlalchemy import ColumnElement, exists

from app.user.models import User
from quart_upsun.security.models import AuditEvent

ADOPTED = "account adopted"


def is_adopted() -> ColumnElement[bool]:
    """Return the SQL condition for adopted accounts.

    They are in use, so they are not deleted for lack of a confirmed email address. The audit trail
    keeps events for 400 days.
    """
    return exists().where(AuditEvent.user_id == User.id, AuditEvent.kind == ADOPTED)
