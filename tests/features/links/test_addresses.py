"""Normalization of URLs and tags."""
# ruff: noqa: RUF001 - texts in other scripts are meant

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.links import tags
from app.links.models import URL_LENGTH
from app.links.tags import parse_tag, parse_tags
from quart_upsun import urls
from quart_upsun.urls import normalize_url

SAME = [
    "https://example.com/",
    "http://example.com/",
    "https://example.com/a/b?x=1&y=2",
    "https://example.com:8443/",
    "https://example.com/a%2Fb",
    "https://example.com/?q=a+b%26c",
    "https://example.com/?x=1&x=2&y=",
    "https://[2001:db8::1]:8080/",
    "https://192.0.2.1/",
    "https://example.com/#/route/1",
    "https://example.com/#!/route",
    "https://xn--bcher-kva.example/",
]
CHANGED = {
    "example.com": "https://example.com/",
    "  Example.COM/Path  ": "https://example.com/Path",
    "//example.com/a": "https://example.com/a",
    "localhost:8000/a": "https://localhost:8000/a",
    "HTTP://EXAMPLE.com:80/": "http://example.com/",
    "https://example.com:443": "https://example.com/",
    "https://example.com:080/": "https://example.com:80/",
    "https://example.com/#part": "https://example.com/",
    "https://example.com?": "https://example.com/",
    "https://example.com/a/../b/./c": "https://example.com/b/c",
    "https://example.com/ä ö": "https://example.com/%C3%A4%20%C3%B6",
    "https://bücher.example/": "https://xn--bcher-kva.example/",
    "https://example.com/?utm_source=a&x=1&fbclid=b": "https://example.com/?x=1",
    "https://example.com/?gclid=1": "https://example.com/",
    "https://example.com./": "https://example.com/",
    "https://[2001:DB8:0::1]/": "https://[2001:db8::1]/",
    "https://example.com/#/a b": "https://example.com/#/a%20b",
}
REFUSED = [
    *("", "   ", "\t\n", "https://", "http:///path", "https://?", "https:", "//"),
    *("javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "file:///etc/passwd"),
    *("ftp://example.com/", "mailto:ada@example.com", "about:blank", "blob:https://example.com/x"),
    *("java\tscript:alert(1)", "java\nscript:alert(1)", "\x01javascript:alert(1)"),
    *("https://ada:secret@example.com/", "https://ada@example.com/", "ada:secret@example.com"),
    *("https://example.com:0/", "https://example.com:65536/", "https://example.com:x/"),
    *("https://example.com:-1/", "https://exa mple.com/", "https://exam_ple!.com/"),
    *("https://example.com\t/", "https://example.com/a\nb", "https://example.com/\x00"),
    *(
        "https://[fe80::1%25eth0]/",
        "https://[::1/",
        "https://[x]/",
        "https://a..b/",
        "https://.example.com/",
    ),
    *("https://" + "a" * 254 + "/", "https://xn--\udcff/", "https://example.com/" + "ä" * 700),
]


@pytest.mark.parametrize("text", SAME)
def test_normalized_url_is_unchanged(text: str) -> None:
    assert normalize_url(text) == text


@pytest.mark.parametrize(("text", "expected"), CHANGED.items())
def test_urls_are_normalized(text: str, expected: str) -> None:
    assert normalize_url(text) == expected
    assert normalize_url(expected) == expected


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:30]))
def test_rejects_urls_that_are_not_web_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z].*\.$"):
        normalize_url(text)


@pytest.mark.parametrize("odd", [chr(code) for code in range(256)], ids=ascii)
def test_normalization_is_idempotent_for_any_character(odd: str) -> None:
    """A URL with any character in any place is rejected, or normalized idempotently."""
    for text in (
        f"https://example.com/a{odd}b?c{odd}d=e{odd}#/f{odd}g",
        f"https://example.com/?utm_source=x&a{odd}=b{odd}c",
        f"exa{odd}mple.com",
        f"{odd}https://example.com/",
        f"https://example.com:8{odd}0/",
        f"https{odd}://example.com/",
    ):
        try:
            first = normalize_url(text)
        except ValueError:
            continue
        assert normalize_url(first) == first
        assert first.isascii()
        assert first.isprintable()
        assert first.startswith(("https://", "http://"))
        assert " " not in first


def test_rejects_url_that_is_too_long() -> None:
    longest = "https://example.com/".ljust(URL_LENGTH, "x")
    assert normalize_url(longest) == longest
    with pytest.raises(ValueError, match="longer than"):
        normalize_url(longest + "x")
    with pytest.raises(ValueError, match="longer than"):
        normalize_url("https://example.com/" + "ä" * 1000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" , ;# ", []),
        ("News #python,news;Web-Dev", ["news", "python", "web-dev"]),
        ("\uff37\uff25\uff22 STRASSE straße", ["strasse", "web"]),
        ("日本語 a_b", ["a_b", "日本語"]),
        ("a\tb\nc", ["a", "b", "c"]),
    ],
)
def test_tags_are_normalized(text: str, expected: list[str]) -> None:
    assert parse_tags(text) == expected
    assert parse_tags(" ".join(expected)) == expected


@pytest.mark.parametrize("text", ["a!", "<b>", "a/b", "a\x00b", "x" * 41, "a.b", "🎉"])
def test_rejects_tags_with_invalid_characters(text: str) -> None:
    with pytest.raises(ValueError, match="Tags may contain"):
        parse_tags(f"good {text}")


def test_rejects_too_many_tags() -> None:
    twenty = [f"t{number:02}" for number in range(20)]
    assert parse_tags(" ".join(twenty)) == twenty
    with pytest.raises(ValueError, match="at most 20"):
        parse_tags(" ".join([*twenty, "more"]))


def test_parse_tag_accepts_exactly_one_tag() -> None:
    assert parse_tag(" #News ") == "news"
    for text in ("", "a b", "!"):
        with pytest.raises(ValueError, match=r"."):
            parse_tag(text)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("?q=caf%E9&utm_source=x", "?q=caf%E9"),
        ("?flag&ref=gclid-x", "?flag&ref=gclid-x"),
        ("?x=1;y=2&utm_source=z", "?x=1;y=2"),
        ("?sig=a%2Fb%20c&utm_medium=m", "?sig=a%2Fb%20c"),
        ("?utm_source=x&a=%zz&&b=+", "?a=%zz&&b=+"),
        ("?a=1&utm%5Fsource=x&b=~%7E", "?a=1&b=~%7E"),
        ("?a[]=1&a[]=2|3", "?a[]=1&a[]=2|3"),
        ("?utm_source", ""),
        ("?utm_source_platform=x&a=1", "?a=1"),
        (
            "?next=https%3A%2F%2Fb.example%2F%3Futm_source%3Dx",
            "?next=https%3A%2F%2Fb.example%2F%3Futm_source%3Dx",
        ),
        ("?xutm_source=1&utm_=2", "?xutm_source=1&utm_=2"),
    ],
)
def test_only_tracking_parameters_are_removed(query: str, kept: str) -> None:
    assert urls.normalize_url(f"https://example.com/a{query}") == f"https://example.com/a{kept}"


@pytest.mark.parametrize(
    "part", ["#/a%2Fb%20c", "#!x%23y?z=%E9", "#/a|b", "/%7Euser/%2f/%", "/a'b(c)*"]
)
def test_other_parts_of_a_url_are_unchanged(part: str) -> None:
    url = f"https://example.com/{part.lstrip('/')}"
    assert urls.normalize_url(url) == url


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("हिन्दी", "हिन्दी"),
        ("กิน", "กิน"),
        ("தமிழ்", "தமிழ்"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("İzmir", "izmir"),
        ("IZMIR", "izmir"),
        ("ＡＢＣ", "abc"),
        ("e\u0301te\u0301", "été"),
        ("Straße", "strasse"),
        ("ne\ufe0fws", "news"),
        ("Donau\u00adschiff", "donauschiff"),
        ("web-dev_2", "web-dev_2"),
        ("བོད་སྐད", "བོད་སྐད"),
        ("བོད་", "བོད་"),
        ("צה״ל", "צה״ל"),
        ("ג׳", "ג׳"),
        ("col·lecció", "col·lecció"),
        ("スター・ウォーズ", "スター・ウォーズ"),
        ("ｽﾀｰ･ｳｫｰｽﾞ", "スター・ウォーズ"),
        ("web\u2011dev", "web-dev"),
    ],
)
def test_tags_in_all_scripts(typed: str, kept: str) -> None:
    assert tags.parse_tag(typed) == tags.tag_from_text(typed) == kept
    assert tags.parse_tag(kept) == kept


@pytest.mark.parametrize(
    "typed", ["C++", "👍", "·a", "״", "\u0301", "\u200c", "a\u202eb", "<b>", "x" * 41]
)
def test_rejects_invalid_tags(typed: str) -> None:
    with pytest.raises(ValueError, match="Tags may contain"):
        tags.parse_tags(typed)


@given(st.text(max_size=60))
def test_tag_from_text_returns_valid_tags(words: str) -> None:
    tag = tags.tag_from_text(words)
    if tag is not None:
        assert tags.parse_tags(tag) == [tag]


@pytest.mark.parametrize("words", ["Z@\u0301", "I\u0307\u0307", "a\u200d-", "\ufb01@\u0301"])
def test_tag_from_text_returns_normalized_tags(words: str) -> None:
    tag = tags.tag_from_text(words)
    assert tag is not None
    assert tags.parse_tag(tag) == tag


def test_tag_from_text_drops_leading_punctuation() -> None:
    assert tags.tag_from_text("・映画") == "映画"
    assert tags.tag_from_text("\u0f0bབོད་ (2)") == "བོད་-2"


def test_trailing_dot_segments_are_resolved() -> None:
    assert urls.normalize_url("https://example.com/a/b/..") == "https://example.com/a/"
    assert urls.normalize_url("https://example.com/a/.?x=/..") == "https://example.com/a/?x=/.."
    assert tags.parse_tags("عربي، نص") == ["عربي", "نص"]
