"""The events of an account's audit trail."""

from enum import StrEnum


class Event(StrEnum):
    """What is worth remembering. The values lie in the database, and are shown as they are."""

    REGISTERED = "registered"
    CONFIRMED = "address confirmed"
    LOGGED_IN = "logged in"
    LOGIN_FAILED = "login failed"
    LOGGED_OUT = "logged out"
    RESET_REQUESTED = "password reset requested"
    PASSWORD_RESET = "password reset"
    PASSWORD_CHANGED = "password changed"
    NAME_CHANGED = "name changed"
    EMAIL_CHANGE_REQUESTED = "change of address requested"
    SESSIONS_ENDED = "all sessions ended"
    INVITED = "somebody invited"
    DELETED = "account deleted"
    PROMOTED = "promoted to administrator"
    DEMOTED = "demoted to member"
    RESET_LINK_CREATED = "reset link made"
    DEACTIVATED = "deactivated"
    REACTIVATED = "reactivated"
    TOKEN_CREATED = "access token created"
    TOKEN_DELETED = "access token deleted"
