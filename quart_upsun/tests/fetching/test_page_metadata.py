"""Page metadata: title, description, icons, character encodings and hostile input."""

import codecs
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quart_upsun import charsets
from quart_upsun.fetching.page_metadata import MAX_BYTES, image_type, read_metadata

URL = "https://www.example.com/a/page.html?q=1"


def title_of(content: str | bytes, charset: str | None = "utf-8") -> str | None:
    return read_metadata(
        content if isinstance(content, bytes) else content.encode(), charset, URL
    ).title


def printed_by(program: str) -> int:
    """Run a Python program in a subprocess, and return the number that it prints."""
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        # One malloc arena, so that memory of new threads does not distort the measurement.
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return int(output)


def icons_of(content: str) -> list[str]:
    return read_metadata(content.encode(), "utf-8", URL).icons


def test_reads_title_description_and_icons() -> None:
    page = read_metadata(
        b"""<!DOCTYPE html><html><head><meta charset="utf-8"><title> The &lt;title&gt;
        of it </title><META NAME="Description" CONTENT="What it&#39;s about"></meta>
        <script>document.write("<title>script</title>")</script>
        <link rel="shortcut icon" href="/favicon.png"></head><body><title>no</title>""",
        None,
        URL,
    )
    assert page.title == "The <title> of it"
    assert page.description == "What it's about"
    assert page.icons == [
        "https://www.example.com/favicon.png",
        "https://www.example.com/favicon.ico",
    ]


def test_open_graph_metadata_takes_precedence() -> None:
    page = read_metadata(
        b"""<title>Site | Article</title><meta property="og:title" content="">
        <meta property="og:title" content="Article"><meta property="og:title" content="Second">
        <meta name="description" content="plain">
        <meta property="og:description" content="for previews">""",
        None,
        URL,
    )
    assert (page.title, page.description) == ("Article", "for previews")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain text",
        b"\x00\xff\xfe",
        b"<title></title>",
        b"<title>\xe2\x80\xae </title>",
        b"<title",
        b"<![broken[<title>lost</title>",
        b"<meta property=og:title><meta content=x><link rel=icon><base>",
    ],
)
def test_page_without_metadata(content: bytes) -> None:
    page = read_metadata(content, None, URL)
    assert (page.title, page.description) == (None, None)
    assert page.icons == ["https://www.example.com/favicon.ico"]


def test_malformed_page_is_read_as_far_as_possible() -> None:
    assert title_of("<title>First</title><![broken[ <meta property=og:title content=no>") == "First"
    assert title_of("<title>Without an end") == "Without an end"
    assert title_of("<title>Cut &amp; dry</title") == "Cut & dry"
    assert title_of("<title>Fish &amp") == "Fish &"


@pytest.mark.parametrize(
    "content",
    [
        "<svg><title>Icon</title></svg><title>Page</title>",
        "<body><svg><g><title>Icon</title></g></svg><title>Page</title>",
        "<svg><svg><title>Icon</title></svg><title>Icon</title></svg><title>Page</title>",
        "<svg/><title>Page</title>",
        "<math><title>Icon</title></math><title>Page</title><svg><title>Icon</title></svg>",
    ],
)
def test_title_inside_svg_or_math_is_ignored(content: str) -> None:
    assert title_of(content) == "Page"


def test_tag_and_attribute_names_are_freed() -> None:
    # lxml caches names until its thread ends: 1 MB per page here.
    program = """
import psutil
from quart_upsun.fetching.page_metadata import read_metadata
size = psutil.Process().memory_info
def names(page):
    return b"".join(b"<a n%dx%d>" % (page, number) for number in range(30_000))
for page in range(40):
    read_metadata(names(page), None, "http://a/")
before = size().rss
for page in range(40, 140):
    read_metadata(names(page), None, "http://a/")
print((size().rss - before) >> 20)
"""
    assert printed_by(program) < 60  # of 100


def test_text_is_cleaned_and_truncated() -> None:
    hostile = "\u202eevil\u2066 ze\x00r\x1bo\u2069 \n\t\u2028 width\x9b"
    assert title_of(f"<title>{hostile}</title>") == "evil zero width"
    assert title_of("<title>क्\u200dष 👩\u200d💻</title>") == "क्\u200dष 👩\u200d💻"
    assert title_of("<title>&#x202e;a&#0;&#xD800;</title>") == "a\ufffd\ufffd"
    page = read_metadata(
        f"<title>{'t' * 500}</title><meta name=description content='{'d ' * 900}'>".encode(),
        None,
        URL,
    )
    assert page.title == "t" * 300
    assert page.description is not None
    assert len(page.description) == 999  # 1,000 without the trailing space


@pytest.mark.parametrize(
    ("content", "charset"),
    [
        ("<title>Grüße</title>".encode("latin-1"), "ISO-8859-1"),
        ("<title>Grüße</title>".encode("utf-8-sig"), "iso-8859-1"),
        ("<title>Grüße</title>".encode("utf-16"), None),
        ("<title>Grüße</title>".encode("utf-16-be"), "utf-16be"),
        ('<meta charset="windows-1252"><title>Grüße</title>'.encode("cp1252"), None),
        ("<meta charset='windows_1252' /><title>Grüße</title>".encode("cp1252"), "no-such"),
        (
            b'<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-15">'
            + "<title>Grüße</title>".encode("iso8859-15"),
            None,
        ),
        ("<meta charset=utf-16><title>Grüße</title>".encode(), None),
        ("<title>Grüße</title>".encode(), None),
        ("<title>Grüße</title>".encode("cp1252"), None),
        ("<title>Grüße</title>".encode("cp1252"), "no-such"),
        (
            '<?xml version="1.0" encoding="macintosh"?><title>Grüße</title>'.encode("mac-roman"),
            None,
        ),
        ("<title>Grüße</title>".encode(), "rot13"),
        ("<title>Grüße</title>".encode(), "punycode"),
        ("<meta charset=unicode_escape><title>Grüße</title>".encode(), "zlib"),
    ],
)
def test_detects_the_character_encoding(content: bytes, charset: str | None) -> None:
    assert title_of(content, charset) == "Grüße"


@pytest.mark.parametrize(
    ("label", "codec", "title"),
    [
        ("ISO-8859-8-I", "iso8859-8", "שלום"),
        ("logical", "iso8859-8", "שלום"),
        ("x-mac-roman", "mac-roman", "Grüße"),
        ("x-mac-cyrillic", "mac-cyrillic", "Привет"),
        ("x-cp1251", "cp1251", "Привет"),
        ("iso-8859-1:1987", "cp1252", "Grüße"),
        ("latin2", "iso8859-2", "łąka"),
        ("Greek", "iso8859-7", "Ελλάδα"),
        ("korean", "euc-kr", "한국"),
        ("csShiftJIS", "shift_jis", "日本語"),
        ("GB_2312-80", "gb2312", "中文"),
    ],
)
def test_all_labels_of_browsers_are_known(label: str, codec: str, title: str) -> None:
    page = f"<title>{title}</title>".encode(codec)
    assert title_of(page, label) == title
    assert title_of(f"<meta charset='{label}'>".encode() + page, None) == title


def test_commented_out_encoding_is_ignored() -> None:
    comment = b'<!-- <meta charset="windows-1251"> -->'
    assert title_of(comment + "<title>Grüße</title>".encode(), None) == "Grüße"
    declared = comment + b'<meta charset="koi8-r">' + "<title>Привет</title>".encode("koi8-r")
    assert title_of(declared, None) == "Привет"


def test_all_codecs_exist() -> None:
    for codec in {*charsets.LABELS.values()}:
        codecs.lookup(codec)


def test_invalid_bytes_are_replaced() -> None:
    latin = "<title>Grüße</title>".encode("latin-1")
    assert title_of(latin, "utf-8") == "Gr\ufffd\ufffde"
    assert title_of(b"<meta charset=utf-8>" + latin, None) == "Gr\ufffd\ufffde"
    # A page that ends inside a character is still UTF-8.
    assert title_of("<title>Grüße</title>日".encode()[:-1], None) == "Grüße"
    assert title_of("<title>“€”</title>".encode("cp1252"), None) == "“€”"


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be"])
def test_xml_declaration_in_utf_16(charset: str) -> None:
    page = '<?xml version="1.0" encoding="utf-16"?><title>日本語</title>'
    assert title_of(page.encode(charset), None) == "日本語"
    assert title_of("<title>日本語</title>".encode("shift_jis"), "Shift_JIS") == "日本語"


def test_icons_are_absolute_urls_with_the_best_first() -> None:
    assert icons_of(
        """<link rel=icon href=tiny.png sizes=16x16><link rel=ICON href="big.png" sizes="512x512">
        <link rel="Icon" href="../good.png" sizes="16x16 48x48"><link rel=stylesheet href=a.css>
        <link rel=apple-touch-icon href=//cdn.example.com/touch.png><link rel=icon href=any.png>
        <link rel=icon href=vector type="image/svg+xml"><link rel=mask-icon href=mask.svg>"""
    ) == [
        "https://www.example.com/good.png",
        "https://cdn.example.com/touch.png",
        "https://www.example.com/a/big.png",
        "https://www.example.com/a/tiny.png",
        "https://www.example.com/favicon.ico",
    ]


def test_icons_are_relative_to_base_and_favicon_to_the_site() -> None:
    assert icons_of(
        "<link rel=icon href=i.png><base href='http://other.example/x/'><base href=/y/>"
    ) == [
        "http://other.example/x/i.png",
        "https://www.example.com/favicon.ico",
    ]
    assert icons_of("<base href='data:text/plain,x'><link rel=icon href=i.png>")[0] == (
        "https://www.example.com/a/i.png"
    )


@pytest.mark.parametrize(
    "href",
    [
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "java&#10;script:alert(1)",
        " &#1;javascript:alert(1)",
        "file:///etc/passwd",
        "ftp://example.com/i.png",
        "http://[broken/i.png",
        "https:",
        "",
        "x" * 3000,
    ],
)
def test_icons_with_other_schemes_are_ignored(href: str) -> None:
    found = icons_of(f'<link rel="icon" href="{href}">')
    assert all(icon.startswith("https://www.example.com/") for icon in found)
    assert not any(part in icon for icon in found for part in ("x" * 3000, "alert", "passwd"))
    assert found[-1] == "https://www.example.com/favicon.ico"


def test_number_of_icons_is_limited() -> None:
    found = icons_of("".join(f"<link rel=icon href={number}.png>" for number in range(1000)))
    assert len(found) == 5
    assert found[-1] == "https://www.example.com/favicon.ico"


def test_title_after_the_first_parser_window() -> None:
    filler = "x" * 100_000
    for before in (f"<script>{filler}</script>", f"<!-- {filler} -->", f"<a b='{filler}'>", filler):
        assert title_of(f"{before}<title>Found</title>") == "Found"
    for size in range(32 * 1024 - 30, 32 * 1024 + 5):  # around the end of the window
        assert title_of(f"<b>{'x' * size}</b><title>Fo&amp;und</title>") == "Fo&und"
        script = f"<script>{'x' * (size + 32 * 1024)}</script>"
        assert title_of(f"{script}<title>Found</title>") == "Found"


NASTY = [
    *("<a ", "<a", "<a b='", '<a b="', "<a b='\" ", "<a =", "<a/", "<a\x00", "<a b=c ", "a="),
    *("<!--", "<!-- --", "<!--->", "<![", "<![cdata[", "<![if]>", "<!", "<!>", "<!doctype ", "<?"),
    *(
        "</",
        "</ ",
        "</>",
        "</a ",
        "</script",
        "</title",
        "<script>",
        "<script></script ",
        "<style>",
    ),
    *("<title>", "<title>&#", "<textarea>", "<plaintext>", "<svg><title>x</title>", "<b><i>"),
    *("<", ">", "=", "'", " ", "\n", "&", "&#", "&#x41", "&amp", "&a", "\x00", "b "),
    *("<meta ", "<meta charset=", "<meta property=og:title content=", "<link rel=icon href=a>"),
    *("<base href=x>", "<link rel=icon sizes='", "1x", "\u0100 ", "\U0001f600<a ", "\u202e"),
]


@pytest.mark.parametrize("start", ["", "<script>", "<title>", "<a ", "<!--", "<meta content='"])
def test_parse_time_is_bounded(start: str) -> None:
    # Quadratic time would mean minutes to hours. The worst of these inputs takes 0.2 s.
    for part in NASTY:
        content = (start + part * (MAX_BYTES // len(part))).encode()
        began = time.process_time()
        read_metadata(content, None, URL)
        assert time.process_time() - began < 5, part


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_parse_memory_is_bounded() -> None:
    # In a subprocess, because the peak of this process includes earlier tests.
    program = """
import re
from pathlib import Path
from quart_upsun.fetching.page_metadata import MAX_BYTES, read_metadata
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
read_metadata(b"<title>x</title>", None, "http://a/")
before = peak()
for part in (b"b ", b"b=c ", b"<a b ", b"a=&lt ", b"<!--", b"&"):
    read_metadata(b"<a " + part * (MAX_BYTES // len(part)), None, "http://a/")
print((peak() - before) // 1024)
"""
    assert printed_by(program) < 60  # of 100


def test_random_input_does_not_raise() -> None:
    chance = random.Random(7)  # noqa: S311
    for _ in range(300):
        parts = chance.choices(NASTY, k=60)
        parts += [chance.randbytes(5).decode("latin-1") for _ in range(20)]
        chance.shuffle(parts)
        charset = chance.choice([None, "utf-16", "iso-2022-jp", "gb18030", "big5", "idna"])
        page = read_metadata("".join(parts).encode(), charset, URL)
        assert page.icons[-1] == "https://www.example.com/favicon.ico"
        assert all(icon.startswith(("http://", "https://")) for icon in page.icons)


def test_invalid_page_url_has_no_icons() -> None:
    assert read_metadata(b"<link rel=icon href=x>", None, "http://[").icons == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\x00\x00\x01\x00\x01\x00", "image/x-icon"),
        (b"GIF87a..", "image/gif"),
        (b"GIF89a..", "image/gif"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\x00\x00\x00WAVEfmt ", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"<?xml version='1.0'?><svg/>", None),
        (b"<!DOCTYPE html>", None),
        (b"\x89PNG", None),
        (b"", None),
    ],
)
def test_image_type(content: bytes, expected: str | None) -> None:
    assert image_type(content) == expected


@pytest.mark.parametrize("label", ["ISO-8859-2", "iso-8859-2"])
def test_xml_encoding_is_case_insensitive(label: str) -> None:
    head = f'<?xml version="1.0" encoding="{label}"?>'
    assert title_of(head.encode() + "<title>łąka</title>".encode("iso8859-2"), None) == "łąka"


@pytest.mark.parametrize("stray", ["<img src=pixel>", "stray text", "<div>", "<body>"])
def test_metadata_after_the_end_of_the_head_is_read(stray: str) -> None:
    page = read_metadata(
        f"<title>Site</title>{stray}<meta property=og:title content=Article>"
        "<meta name=description content=About>".encode(),
        None,
        URL,
    )
    assert (page.title, page.description) == ("Article", "About")


def test_title_inside_template_is_ignored() -> None:
    assert title_of("<template><title>Card</title></template><title>Page</title>") == "Page"
