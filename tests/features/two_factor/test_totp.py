"""Codes as text: normal forms, time steps, QR code."""

import re

import pytest

from app.user.two_factor import recovery_codes, totp
from tests.features.two_factor.factories import Authenticator, Clock


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("123456", "123456"),
        (" 123 456 ", "123456"),
        ("123-456", "123456"),
        ("123\u00a0456", "123456"),
        ("\uff11\uff12\uff13\uff14\uff15\uff16", "123456"),
        ("\u0661\u0662\u0663\u0664\u0665\u0666", "123456"),
        ("12345", None),
        ("1234567", None),
        ("12345a", None),
        ("12345\u00b2", "123452"),
        ("", None),
        ("1" * 100_000, None),
    ],
)
def test_codes_are_normalized(text: str, code: str | None) -> None:
    assert totp.normalize(text) == code


@pytest.mark.parametrize(("steps", "is_valid"), [(-2, False), (-1, True), (1, True), (2, False)])
def test_clock_may_differ_by_one_step(clock: Clock, steps: int, is_valid: bool) -> None:
    phone = Authenticator(totp.generate_secret(), clock)
    expected = clock.step + steps if is_valid else None
    assert totp.find_step(phone.secret, phone.code(steps)) == expected


def test_codes_are_those_of_the_rfc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appendix B of RFC 6238: the last six digits at 1111111109 seconds."""
    monkeypatch.setattr(totp, "current_step", lambda: 1111111109 // totp.STEP_SECONDS)
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # "12345678901234567890" in base32
    assert totp.find_step(secret, "081804") == 1111111109 // 30


def test_qr_code_is_an_svg_without_styles_and_scripts() -> None:
    uri = totp.provisioning_uri(totp.generate_secret(), username="ada", issuer="A: <site>")
    svg = str(totp.qr_code(uri))
    assert svg.startswith("<svg")
    assert not re.search(r"style=|<style|<script|\son\w+=|href", svg)
    assert uri.startswith("otpauth://totp/A%20%20%3Csite%3E:ada?secret=")


@pytest.mark.parametrize(
    "change",
    [
        str,
        str.lower,
        lambda code: code.replace("-", ""),
        lambda code: code.replace("-", " ").replace("0", "O").replace("1", "l"),
        lambda code: f"  {code}\n",
    ],
)
def test_recovery_codes_are_normalized(change: object) -> None:
    code = "01AB-CDEF-GHJK-MNPQ-RSTV-WXYZ"
    assert callable(change)
    assert recovery_codes.normalize(change(code)) == code.replace("-", "")


@pytest.mark.parametrize("text", ["", "01AB", "U" * 24, "0" * 23, "0" * 25, "0" * 100_000])
def test_other_texts_are_not_recovery_codes(text: str) -> None:
    assert recovery_codes.normalize(text) is None


def test_recovery_codes_are_random() -> None:
    codes = [recovery_codes.generate() for _ in range(100)]
    assert len(set(codes)) == 100
    assert all(re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}", c) for c in codes)
    assert len(recovery_codes.ALPHABET) ** recovery_codes.LENGTH >= 2**112
