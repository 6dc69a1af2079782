"""Protection against open redirects."""

from urllib.parse import urlsplit

# Targets are kept in signed cookies, of which browsers drop those beyond 4096 bytes.
MAX_TARGET_BYTES = 1000


def safe_redirect_target(target: str | None) -> str | None:
    """Return `target` if it is a path on this site and not too long to be kept, else None.

    Use it for redirect targets from the query, such as `next`, to prevent open redirects.
    """
    if not target:
        return None
    # Browsers remove these characters before they parse a URL.
    target = "".join(character for character in target if character > " " and character != "\x7f")
    if not target.startswith("/") or target[1:2] in {"/", "\\"}:
        return None
    if len(target.encode(errors="replace")) > MAX_TARGET_BYTES:
        return None
    try:
        parts = urlsplit(target)
    except ValueError:
        return None
    return None if parts.scheme or parts.netloc else target
