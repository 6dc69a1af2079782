"""Parsing of bookmark files, valid and damaged."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from app.bookmarks import bookmark_file
from app.bookmarks.bookmark_file import Bookmark, BookmarkParser, Losses
from quart_upsun.text import clean, clean_lines

FIREFOX = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
<!-- This is an automatically generated file. <A HREF="https://comment.example/">no</A> -->
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'self'; img-src data: *"></meta>
<TITLE>Bookmarks</TITLE>
<H1>Bookmarks Menu</H1>

<DL><p>
    <DT><A HREF="place:sort=8&maxResults=10" ADD_DATE="1700000000">Most Visited</A>
    <DT><H3 ADD_DATE="1600000000" LAST_MODIFIED="1">Web Dev &amp; C++</H3>
    <DL><p>
        <DT><A HREF="https://example.com/a?x=1&amp;y=2"
 ADD_DATE="1700000001" ICON="data:image/png;base64,i="
 TAGS="news,Two Words,ÄRGER">It&#39;s &lt;a&gt; title</A>
        <DD>About it
        <DT><A HREF="javascript:alert(1)" ADD_DATE="1700000002">A script</A>
    </DL><p>
    <DT><H3 PERSONAL_TOOLBAR_FOLDER="true">Lesezeichen-Symbolleiste</H3>
    <DL><p>
        <DT><A HREF="http://EXAMPLE.com:80/b" ADD_DATE="1700000003000000">b</A>
    </DL><p>
    <HR>
    <DT><A HREF="https://example.com/c">c</A>
</DL>
"""
CHROME = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
<TITLE>Bookmarks</TITLE>
<H1>Bookmarks</H1>
<DL><p>
    <DT><H3 ADD_DATE="1700000000" PERSONAL_TOOLBAR_FOLDER="true">Bookmarks bar</H3>
    <DL><p>
        <DT><H3 ADD_DATE="1700000000">Recipes</H3>
        <DL><p>
            <DT><A HREF="https://example.com/soup" ADD_DATE="1700000000">Soup</A>
        </DL><p>
    </DL><p>
    <DT><A HREF="chrome://settings/" ADD_DATE="1700000000">Settings</A>
</DL><p>
"""
SAFARI = """<!DOCTYPE NETSCAPE-Bookmark-file-1>
\t<HTML>
\t<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset=UTF-8">
\t<Title>Bookmarks</Title>
\t<H1>Bookmarks</H1>
\t<DT><H3 FOLDED>Favorites</H3>
\t<DL><p>
\t\t<DT><A HREF="https://www.example.com/">Example</A>
\t</DL><p>
\t<DT><H3 FOLDED id="com.apple.ReadingList">Reading List</H3>
\t<DL><p>
\t\t<DT><A HREF="https://example.com/read">Read</A>
\t</DL><p>
\t</HTML>
"""


PARTS = [
    *(
        "<",
        ">",
        "'",
        '"',
        "=",
        "<!--",
        "-->",
        "<!",
        "<?",
        "<![CDATA[",
        "&",
        "&amp",
        "\x00",
        "\ufffe",
    ),
    *(
        "<DT>",
        "<DD>",
        "<DL><p>",
        "</DL>",
        "<HR>",
        "<H3>",
        "</H3>",
        "<A ",
        "<A HREF=",
        "HREF='",
        "</A>",
    ),
    *(
        "<title>",
        "<textarea ",
        "<script>",
        "</script",
        "<plaintext>",
        "<svg>",
        "<select>",
        "<table>",
    ),
    *(
        "text",
        " ",
        "\n",
        "é",
        "👩\u200d💻",
        'TITLE="24" monitor"',
        "ADD_DATE=1",
        "<a href=x>",
        "</",
    ),
]


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def read(content: bytes | str, *, piece: int = 1 << 18, skip: int = 0) -> list[Bookmark]:
    if isinstance(content, str):
        content = content.encode()
    reader, found = BookmarkParser(skip=skip, max_links=10_000), []
    for start in range(0, len(content), piece):
        found += reader.feed(content[start : start + piece])
    return found + reader.close()


def link(
    url: str | None,
    title: str = "",
    tags: Sequence[str] = (),
    added: int | None = None,
    *,
    note: str = "",
    archived: bool = False,
) -> Bookmark:
    return Bookmark(url, title, note, list(tags), archived, at(added) if added else None)


def losses(content: str | bytes) -> Losses:
    reader = BookmarkParser(max_links=10_000)
    reader.feed(content.encode() if isinstance(content, str) else content)
    reader.close()
    return reader.losses


def test_firefox() -> None:
    assert read(FIREFOX) == [
        link(None, "Most Visited", [], 1_700_000_000),
        link(
            "https://example.com/a?x=1&y=2",
            "It's <a> title",
            ["news", "two-words", "web-dev-c", "ärger"],
            1_700_000_001,
            note="About it",
        ),
        link(None, "A script", ["web-dev-c"], 1_700_000_002),
        link("http://example.com/b", "b", [], 1_700_000_003),
        link("https://example.com/c", "c"),
    ]
    assert losses(FIREFOX) == Losses(hidden=1, tags=2)  # C++


def test_chrome() -> None:
    assert read(CHROME) == [
        link("https://example.com/soup", "Soup", ["recipes"], 1_700_000_000),
        link(None, "Settings", [], 1_700_000_000),
    ]
    assert losses(CHROME) == Losses()


def test_safari() -> None:
    assert [(each.url, each.tags) for each in read(SAFARI)] == [
        ("https://www.example.com/", []),
        ("https://example.com/read", []),
    ]


@pytest.mark.parametrize("content", [FIREFOX, CHROME, SAFARI])
@pytest.mark.parametrize("piece", [1, 2, 7, 97])
def test_chunks_can_end_anywhere(content: str, piece: int) -> None:
    # The first chunk contains the whole header, as chunks of 256 KiB do.
    data = content.encode()
    reader = BookmarkParser(max_links=100)
    found = reader.feed(data[:300])
    for start in range(300, len(data), piece):
        found += reader.feed(data[start : start + piece])
    assert found + reader.close() == read(content)


def test_skipped_links_are_counted() -> None:
    for skip in range(6):
        assert read(FIREFOX, skip=skip) == read(FIREFOX)[skip:]


def test_parser_stops_at_the_link_limit() -> None:
    link = b'<DT><A HREF="https://example.com/">x</A>'
    for count, full in ((3, False), (4, True), (1000, True)):
        reader = BookmarkParser(max_links=3)
        found = reader.feed(link * count) + reader.close()
        assert (len(found), reader.count, reader.is_full) == (3, 3, full)


@pytest.mark.parametrize(
    ("content", "titles"),
    [
        (b"\xef\xbb\xbf<A HREF=https://e.example/>\xc3\xa4</A>", ["ä"]),
        (b'<META charset="iso-8859-1"><A HREF=https://e.example/>\xe4</A>', ["ä"]),
        (b'<META charset="utf-16"><A HREF=https://e.example/>\xc3\xa4</A>', ["ä"]),
        (b'<META charset="idna"><A HREF=https://e.example/>\xe4</A>', ["ä"]),
        (b'<META charset="utf-8"><A HREF=https://e.example/>\xe4\xc3\xa4\x80</A>', ["ää€"]),
        (b'<?xml version="1.0" encoding="iso-8859-5"?><A HREF=https://e.example/>\xd4</A>', ["д"]),
        ("\ufeff<A HREF=https://e.example/>ä</A>".encode("utf-16-le"), ["ä"]),
        (b"<A HREF=https://e.example/>\x00a\xe2\x80\xaeb\xed\xa0\x80&#0;&#x202e;</A>", None),
        (b"<A HREF=https://e.example/>one <b>bold</b>\n two<A HREF=https://e.example/2>", None),
        (b"<A NAME=x>no link</A>", []),
        (b"<A HREF=https://e.example/>a < b <3 <</A>", ["a < b <3 <"]),
        (b'<A HREF="https://e.example/">' + b"x" * 5000, ["x" * 300]),
    ],
)
def test_titles(content: bytes, titles: list[str] | None) -> None:
    found = [each.title for each in read(content)]
    if titles is not None:
        assert found == titles
    for title in found:
        assert title.isprintable()
        assert "\u202e" not in title


@pytest.mark.parametrize(
    ("href", "url"),
    [
        ("about:blank", None),
        ("file:///etc/passwd", None),
        ("data:text/html,x", None),
        ("page.html", None),
        ("//example.com/", None),
        ("https://user:pass@example.com/", None),
        ("https://example.com/" + "x" * 2048, None),
        ("https://", None),
        ("", None),
        (" HTTPS://Example.com/?utm_source=x ", "https://example.com/"),
        ("https://example.com/\x00", "https://example.com/"),
        ("https://[::1", None),
    ],
)
def test_addresses(href: str, url: str | None) -> None:
    (found,) = read(f'<DT><A HREF="{href}">x</A>')
    assert found.url == url


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("1700000000", 1_700_000_000),
        ("1700000000123", 1_700_000_000),
        ("0", None),
        ("-1", None),
        ("99999999999", None),
        ("9" * 5000, None),
        ("\u0661\u0667\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660", None),
        ("soon", None),
    ],
)
def test_times(date: str, seconds: int | None) -> None:
    (found,) = read(f'<DT><A HREF="https://e.example/" ADD_DATE="{date}">x</A>')
    assert found.created_at == (at(seconds) if seconds else None)


def test_tags_are_limited() -> None:
    words = ",".join([*(f"t{number}" for number in range(30)), "x" * 50, "!!!", "-", ""])
    folders = "".join(f"<H3>f{number}</H3><DL>" for number in range(60))
    (one,) = read(f'{folders}<A HREF="https://e.example/" TAGS="{words}">x</A>')
    assert one.tags == sorted(f"t{number}" for number in range(20))
    (two,) = read(f'<H3>outer</H3><DL>{folders}<A HREF="https://e.example/">x</A>')
    assert two.tags == sorted(f"f{number}" for number in range(29, 49))
    (three,) = read(f'<A HREF="https://e.example/" TAGS="{"x" * 50}">x</A>')
    assert three.tags == ["x" * 40]
    left = "</DL>" * 100
    (four,) = read(f'{folders}{left}<H3>in</H3><DL><A HREF="https://e.example/">x</A>')
    assert four.tags == ["in"]


@pytest.mark.parametrize(
    "start", [b'<A HREF="', b"<A HREF='https://e.example/", b"<A " + b'""', b"<!-- "]
)
def test_unclosed_tag_is_an_error(start: bytes) -> None:
    reader = BookmarkParser(max_links=10)
    content = b"<DT><A HREF=https://e.example/>x</A>" + start + b"x" * (2 * 2**20)
    found = [
        link
        for at in range(0, len(content), 1 << 18)
        for link in reader.feed(content[at:][: 1 << 18])
    ]
    found += reader.close()
    assert reader.error is not None
    assert "unclosed tag or comment" in reader.error
    assert [each.title for each in found] == ["x"]


@pytest.mark.parametrize("part", [b"<a>", b"<dl>", b"<h3>", b"<!---->"])
def test_too_much_markup_is_an_error(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookmark_file, "MAX_MARKUP_TAGS", 1000)
    for count, is_broken in ((300, False), (1100, True)):
        reader = BookmarkParser(max_links=10)
        assert reader.feed(part * count) == []
        assert (reader.error is not None) == is_broken


def test_notes_can_have_many_entities_and_line_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bookmark_file, "MAX_MARKUP_TAGS", 1000)
    link = '<DT><A HREF="https://e.example/">x</A>\n<DD>{}\n'
    for note in ("&#39;" * 900, "a<BR>" * 20):
        assert len(read(link.format(note) * 200)) == 200


def test_long_url_as_title_does_not_count_as_shortened() -> None:
    url = "https://e.example/" + "x" * 400
    line = bookmark_file.format_bookmark(url, "", created_at=at(1_700_000_000))
    reader = BookmarkParser(max_links=10)
    found = (
        reader.feed((bookmark_file.FILE_HEADER + line + bookmark_file.FILE_FOOTER).encode())
        + reader.close()
    )
    assert [(each.url, each.title) for each in found] == [(url, "")]
    assert reader.losses.summary() is None


def test_notes_are_cleaned_like_descriptions_in_the_api() -> None:
    note = "one \u2028 two\r\n\n\n\n\tthree\u202e"
    (found,) = read(f'<DT><A HREF="https://e.example/">x</A>\n<DD>{note}\n')
    assert found.description == clean_lines(note) == "one\ntwo\n\nthree"


def test_too_many_distinct_names_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bookmark_file, "MAX_NAMES", 100)
    for name in ("<n{}>", "<a n{}>"):
        for count, is_broken in ((90, False), (110, True)):
            reader = BookmarkParser(max_links=10)
            reader.feed("".join(map(name.format, range(count))).encode())
            assert (reader.error is not None) == is_broken


@pytest.mark.parametrize("part", [b"<", b"<a ", b"<a '\"", b'<a "', b"<a a=a", b"<!--", b"&amp;"])
def test_parsing_time_is_linear(part: bytes) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        read(part * (size // len(part)))
        return time.process_time() - started

    # 16 times the input would take 256 times as long if parsing were quadratic.
    assert seconds(512 * 1024) < 0.2 + 60 * seconds(32 * 1024)


GOOD = "".join(f'<DT><A HREF="https://g.example/{number}">g{number}</A>\n' for number in range(100))


@pytest.mark.parametrize(
    ("broken", "url", "title", "count"),
    [
        ('<A HREF="https://e.example/m" TITLE="24" monitor">M</A>', "m", "M", 1),
        ("<A HREF=https://e.example/o'reilly>M</A>", "o'reilly", "M", 0),
        ("<A HREF='https://e.example/o'reilly'>M</A>", "o", "M", 1),
        ('<A HREF="https://e.example/m>M</A>', "m", "M", 1),
        ("<A HREF='https://e.example/m>It is M</A>", "m", "It is M", 1),
        ('<A HREF="https://e.example/m ADD_DATE="1700000000">M</A>', "m", "M", 1),
        ('<A HREF="https://e.example/m" TAGS=\'a,b">M</A>', "m", "", 1),
        ('<A HREF="https://e.example/m"', "m", "", 1),
        ('<A HREF="https://e.example/m">M<!-- no end</A>', "m", "M", 1),
        ('<A HREF="https://e.example/m">M<![CDATA[ no end</A>', "m", "M", 1),
        ('<A HREF="https://e.example/m">M<?php no end</A>', "m", "M", 1),
        ('<A HREF="https://e.example/m">a<b</A>', "m", "a", 1),
        ('<A HREF="https://e.example/m">List<String></A>', "m", "List", 1),
        ('<A HREF="https://e.example/m">M</A><DD>if x<y then', "m", "M", 1),
        ('<A HREF="https://e.example/m">M <b>bold</b></A><DD>a<br>b <i>c</i>', "m", "M bold", 0),
        ('<A HREF="https://e.example/m">Use <title></A>', "m", "Use <title>", 0),
        (
            '<A HREF="https://e.example/m">Use <textarea rows=1></A>',
            "m",
            "Use <textarea rows=1>",
            0,
        ),
        ('<A HREF="https://e.example/m">Use <SCRIPT></A>', "m", "Use <SCRIPT>", 0),
        ('<A HREF="https://e.example/m">M</A><plaintext>', "m", "M", 0),
        ('<A HREF="https://e.example/m">M<table><select><b></A>', "m", "M", 0),
    ],
)
def test_links_after_broken_markup_are_parsed(
    broken: str, url: str, title: str, count: int
) -> None:
    content = f"<DL><p>\n<DT>{broken}\n{GOOD}</DL>"
    for piece in (1 << 18, 1, 7):
        first, *others = read(content, piece=piece)
        assert (first.url, first.title) == (f"https://e.example/{url}", title)
        assert [each.title for each in others] == [f"g{number}" for number in range(100)]
        assert all(each.url for each in others)
    assert losses(content) == Losses(damaged=count)


def test_links_inside_a_broken_tag_are_counted() -> None:
    # Without <DT> before each link, the parser cannot resynchronize.
    content = '<A HREF="https://e.example/1>a</A><A HREF="https://e.example/2">b</A>'
    assert [each.url for each in read(content)] == ["https://e.example/1"]
    assert losses(content) == Losses(damaged=1, hidden=1)


@pytest.mark.parametrize(
    ("end", "is_cut_off"),
    [
        ("", False),
        ("</DL>", False),
        ("<DD>a note &am", False),
        ("<", False),
        ("<DT", True),
        ('<DT><A HREF="https://e.example', True),
        ('<DD>see <a href="http://exa', True),
        ("<!-- ", True),
        ("</DL", True),
        ('<DT><A HREF="https://e.example/">half a tit', True),
        ('<DT><A HREF="https://e.example/">x</A>', False),
    ],
)
def test_truncated_file_is_detected(end: str, is_cut_off: bool) -> None:
    content = f"<DL>{GOOD}{end}"
    assert len(read(content, piece=3)) in {100, 101}
    assert losses(content) == Losses(is_cut_off=is_cut_off)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("<DD>One\nline  and\r\nanother\n\n    <DT>", "One\nline and\nanother"),
        ("<DD>One<br>two<p>three</p>", "One\ntwo\nthree"),
        ("<DD>a &lt;b&gt; <b>c</b>", "a <b> c"),
        ('<DD>see <a href="https://n.example/">this</a>!', "see this (https://n.example/)!"),
        ('<DD><a href="https://n.example/">https://n.example/</a>', "https://n.example/"),
        ("<DD>one<DD>two", "one\ntwo"),
        ("<DD>क्\u200dष 👩\u200d💻\u202e", "क्\u200dष 👩\u200d💻"),
        ("\n<DD>", ""),
        ("</DL><DD>no note", ""),
    ],
)
def test_notes(content: str, note: str) -> None:
    (found,) = read(f'<DL><DT><A HREF="https://e.example/">x</A>{content}')
    assert found.description == note


def test_a_link_without_dt_ends_a_note() -> None:
    found = read(
        '<A HREF="https://e.example/1">1</A><DD>one\n'
        '<A HREF="https://e.example/2" ADD_DATE="1">2</A>'
    )
    assert [(each.title, each.description) for each in found] == [("1", "one"), ("2", "")]


def test_losses_are_counted() -> None:
    start = '<DT><A HREF="https://e.example/"'
    assert losses(f"{start}>{'x' * 300}</A><DD>{'n' * 1000}") == Losses()
    assert losses(f"{start}>{'x' * 301}</A>") == Losses(titles=1)
    assert losses(f"{start}>x</A><DD>{'n' * 1001}") == Losses(notes=1)
    for count, lost in ((20, 0), (21, 1), (200, 1)):
        words = ",".join(f"t{number}" for number in range(count))
        assert losses(f'{start} TAGS="{words},t1, T2,">x</A>') == Losses(tags=lost)
    assert losses(f'{start} TAGS="{"x" * 41}">x</A>{start} TAGS="!!!">x</A>') == Losses(tags=2)
    for words in ("C++", "node.js", "o\u2019clock", "🎉 party"):
        assert losses(f'{start} TAGS="{words}">x</A>') == Losses(tags=1)
        assert losses(f"<DT><H3>{words}</H3><DL>{start}>x</A></DL>") == Losses(tags=1)
    assert (
        losses(f'{start} TAGS="Two  Words,İzmir,\uff21,Donau\u00adschiff,བོད་,">x</A>') == Losses()
    )
    assert losses(f"<DT><H3>f</H3><DD>About f<DL>{start}>x</A></DL>") == Losses(folder_notes=1)


def test_losses_have_a_summary() -> None:
    assert Losses().summary() is None
    assert Losses(titles=1, damaged=1234).summary() == (
        "1 title shortened to 300 characters;"
        " 1,234 links with broken markup (check title, tags and note)."
    )
    most = 10**6
    longest = Losses(most, most, most, most, most, most, True).summary()
    assert longest is not None
    assert len(longest) < 800  # the column has room for 1,000


def test_feed_url_is_used_without_href() -> None:
    (one,) = read('<DT><A FEED="true" FEEDURL="https://e.example/rss">x</A>')
    (two,) = read('<DT><A FEEDURL="https://e.example/rss" HREF="https://e.example/">x</A>')
    (three,) = read("<DT><A HREF>x</A>")
    assert [one.url, two.url, three.url] == ["https://e.example/rss", "https://e.example/", None]


def test_libxml2_uses_the_html5_tokenizer() -> None:
    assert etree.LIBXML_VERSION >= (2, 14)


# Stored texts have passed `clean`.
CLEAN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=100).map(clean)
NOTE = st.lists(CLEAN, max_size=4).map(lambda lines: clean_lines("\n".join(lines)))
TAGS = st.lists(st.from_regex(r"[a-zä0-9_]{1,8}", fullmatch=True), max_size=20, unique=True)
STORED = st.builds(
    Bookmark,
    st.integers(0, 99).map(lambda number: f"https://e.example/{number}?a=1&b='%22"),
    CLEAN,
    NOTE,
    TAGS.map(sorted),
    st.booleans(),
    st.integers(700_000_000, 1_700_000_000).map(at),
)


@settings(deadline=None)
@given(st.lists(STORED, max_size=5), st.integers(1, 500))
def test_exported_links_are_imported_unchanged(links: list[Bookmark], piece: int) -> None:
    lines = [
        bookmark_file.format_bookmark(
            link.url or "",
            link.title,
            description=link.description,
            tags=link.tags,
            archived=link.archived,
            created_at=link.created_at or at(1),
        )
        for link in links
    ]
    content = bookmark_file.FILE_HEADER + "".join(lines) + bookmark_file.FILE_FOOTER
    assert read(content, piece=piece) == links
    assert losses(content) == Losses()


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=60), st.integers(1, 50))
def test_no_link_is_lost_silently(parts: list[str], piece: int) -> None:
    """A complete link is imported, whatever surrounds it."""
    content = "".join([*parts, '\n<DT><A HREF="https://whole.example/">whole</A>\n', *parts])
    whole = link("https://whole.example/", "whole")._replace(tags=[], description="")
    found = [each._replace(tags=[], description="") for each in read(content, piece=piece)]
    assert whole in found
