"""Time-based one-time passwords (TOTP), as authenticator apps compute them.

https://www.rfc-editor.org/rfc/rfc6238: HMAC-SHA1, six digits, steps of 30 seconds. Other parameters
are not supported by all apps.
"""

import hmac
import re
import time
import unicodedata

from markupsafe import Markup

STEP_SECONDS = 30
DIGITS = 6
# Accept the codes of the previous and the next step, because clocks differ. RFC 6238, section 5.2.
DRIFT_STEPS = 1
# Some apps and mails show codes in groups.
SEPARATORS = re.compile(r"[\s\u2010-\u2015\u2212-]")


def generate_secret() -> str:
    """Generate a random secret of 160 bits in base32, the length that RFC 4226 recommends."""
    import pyotp

    return pyotp.random_base32()


def provisioning_uri(secret: str, *, username: str, issuer: str) -> str:
    """Return the `otpauth:` URI that a QR code transfers to an authenticator app.

    https://github.com/google/google-authenticator/wiki/Key-Uri-Format
    """
    import pyotp

    # A colon separates the issuer from the username.
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=issuer.replace(":", " "))


def qr_code(uri: str) -> Markup:
    """Return a QR code as an SVG element, without styles and scripts.

    It is black on white in both color schemes, because some scanners cannot read inverted codes.
    """
    import segno

    svg = segno.make(uri, error="m", micro=False).svg_inline(
        border=4, light="#fff", svgclass="qr-code", lineclass=None, omitsize=True
    )
    return Markup(svg)  # noqa: S704 - made of numbers only


def group(secret: str) -> str:
    """Return the secret in groups of four characters, for typing."""
    return " ".join(re.findall(".{1,4}", secret))


def normalize(text: str) -> str | None:
    """Return the six ASCII digits of a code as it was typed; None if it is not a code.

    Spaces and hyphens are ignored, and digits of other scripts and widths are accepted.
    """
    # The limit keeps long input cheap.
    text = SEPARATORS.sub("", unicodedata.normalize("NFKC", text[:64]))
    if len(text) != DIGITS or not text.isdecimal():
        return None
    return "".join(str(unicodedata.decimal(each)) for each in text)


def current_step() -> int:
    """Return the number of the current time step."""
    return int(time.time()) // STEP_SECONDS


def find_step(secret: str, code: str) -> int | None:
    """Return the time step of a code, if it is the current one or a neighbor, or else None."""
    import pyotp

    generator, now = pyotp.HOTP(secret), current_step()
    for step in range(now - DRIFT_STEPS, now + DRIFT_STEPS + 1):
        if hmac.compare_digest(generator.at(step), code):
            return step
    return None
