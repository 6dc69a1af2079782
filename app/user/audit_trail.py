"""The events of the audit trail."""

from enum import StrEnum


class Event(StrEnum):
    """An event of an account. The values are stored in the database and shown to users."""

    REGISTERED = "registered"
    CONFIRMED = "email address confirmed"
    LOGGED_IN = "logged in"
    LOGIN_FAILED = "login failed"
    LOGGED_OUT = "logged out"
    RESET_REQUESTED = "password reset requested"
    PASSWORD_RESET = "password reset"
    PASSWORD_CHANGED = "password changed"
    NAME_CHANGED = "username changed"
    EMAIL_CHANGE_REQUESTED = "email address change requested"
    SESSIONS_ENDED = "all sessions ended"
    INVITED = "invitation sent"
    DELETED = "account deleted"
    PROMOTED = "promoted to administrator"
    DEMOTED = "demoted to member"
    RESET_LINK_CREATED = "reset link created"
    DEACTIVATED = "deactivated"
    REACTIVATED = "reactivated"
    TOKEN_CREATED = "access token created"
    TOKEN_DELETED = "access token deleted"
