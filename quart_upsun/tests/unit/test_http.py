"""Cross-site request detection, Host header normalization and safe redirects."""

import pytest

from quart_upsun.http.hosts import canonical_host, is_cross_site
from quart_upsun.http.redirects import MAX_TARGET_BYTES, safe_redirect_target

OWN = "https://example.com"


@pytest.mark.parametrize(
    ("fetch_site", "origin", "expected"),
    [
        ("same-origin", None, False),
        ("same-origin", OWN, False),
        ("none", None, False),
        ("same-site", None, True),
        ("same-site", OWN, True),
        ("cross-site", OWN, True),
        ("nonsense", OWN, True),
        ("", OWN, True),
        (None, OWN, False),
        (None, "http://example.com", True),
        (None, "https://evil.example", True),
        (None, "https://example.com.evil.example", True),
        (None, "null", True),
        (None, "", True),
        (None, None, False),
    ],
)
def test_detects_cross_site_requests(
    fetch_site: str | None, origin: str | None, expected: bool
) -> None:
    assert is_cross_site(fetch_site, origin, OWN) is expected


@pytest.mark.parametrize(
    "target", ["/", "/users/", "/users/?page=2#top", "/a//b", "/with space", "/%2F%2Fevil.example"]
)
def test_redirect_to_a_path_on_this_site_is_allowed(target: str) -> None:
    assert safe_redirect_target(target) == target.replace(" ", "")


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "users/",
        "//evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "/\t/evil.example",
        "\n//evil.example",
        " //evil.example",
        "/\x00/evil.example",
        "https://evil.example",
        "https:/evil.example",
        "javascript:alert(1)",
        "///evil.example",
        "/ /evil.example",
        "/" + "a" * MAX_TARGET_BYTES,
        "/" + "ä" * (MAX_TARGET_BYTES // 2),
    ],
)
def test_redirect_to_another_site_is_rejected(target: str | None) -> None:
    assert safe_redirect_target(target) is None


@pytest.mark.parametrize(
    ("host", "canonical"),
    [
        ("www.example.com", "www.example.com"),
        ("WWW.Example.COM", "www.example.com"),
        ("example.com.", "example.com"),
        ("example.com.:443", "example.com"),
        ("example.com:80", "example.com"),
        ("example.com:8443", "example.com:8443"),
        ("example.com:", "example.com:"),
        ("[::1]", "[::1]"),
        ("[::1]:443", "[::1]"),
        ("[::80]", "[::80]"),
        ("", ""),
    ],
)
def test_canonical_host(host: str, canonical: str) -> None:
    assert canonical_host(host) == canonical
