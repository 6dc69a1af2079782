"""The bookmark file, as browsers write it and as nobody should."""
# ruff: noqa: RUF001 - texts in other scripts are meant

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.links import addresses, bookmarks
from app.links.bookmarks import Bookmark, Malformed, Reader
from app.settings import ROOT
from app.text import clean, clean_lines

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


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def read(content: bytes | str, *, piece: int = 1 << 18, skip: int = 0) -> list[Bookmark]:
    if isinstance(content, str):
        content = content.encode()
    reader, found = Reader(skip=skip, most=10_000), []
    for start in range(0, len(content), piece):
        found += reader.feed(content[start : start + piece])
    return found + reader.finish()


def test_firefox() -> None:
    assert read(FIREFOX) == [
        Bookmark(None, "Most Visited", "", [], False, at(1_700_000_000)),
        Bookmark(
            "https://example.com/a?x=1&y=2",
            "It's <a> title",
            "About it",
            ["news", "two-words", "web-dev-c", "ärger"],
            False,
            at(1_700_000_001),
        ),
        Bookmark(None, "A script", "", ["web-dev-c"], False, at(1_700_000_002)),
        Bookmark("http://example.com/b", "b", "", [], False, at(1_700_000_003)),
        Bookmark("https://example.com/c", "c", "", [], False, None),
    ]


def test_chrome() -> None:
    assert read(CHROME) == [
        Bookmark("https://example.com/soup", "Soup", "", ["recipes"], False, at(1_700_000_000)),
        Bookmark(None, "Settings", "", [], False, at(1_700_000_000)),
    ]


def test_safari() -> None:
    assert [(each.url, each.tags) for each in read(SAFARI)] == [
        ("https://www.example.com/", []),
        ("https://example.com/read", []),
    ]


@pytest.mark.parametrize("content", [FIREFOX, CHROME, SAFARI])
@pytest.mark.parametrize("piece", [1, 2, 7, 97])
def test_pieces_end_anywhere(content: str, piece: int) -> None:
    # The first one holds the head, as it does in a file that is cut into pieces of 256 KiB.
    data = content.encode()
    reader = Reader(most=100)
    found = reader.feed(data[:300])
    for start in range(300, len(data), piece):
        found += reader.feed(data[start : start + piece])
    assert found + reader.finish() == read(content)


def test_skipped_links_are_counted() -> None:
    for skip in range(6):
        assert read(FIREFOX, skip=skip) == read(FIREFOX)[skip:]


def test_there_is_an_end() -> None:
    link = b'<DT><A HREF="https://example.com/">x</A>'
    for count, full in ((3, False), (4, True), (1000, True)):
        reader = Reader(most=3)
        found = reader.feed(link * count) + reader.finish()
        assert (len(found), reader.count, reader.is_full) == (3, 3, full)


@pytest.mark.parametrize(
    ("content", "titles"),
    [
        (b"\xef\xbb\xbf<A HREF=https://e.example/>\xc3\xa4</A>", ["ä"]),
        (b'<META charset="iso-8859-1"><A HREF=https://e.example/>\xe4</A>', ["ä"]),
        (b'<META charset="utf-16"><A HREF=https://e.example/>\xc3\xa4</A>', ["ä"]),
        (b'<META charset="idna"><A HREF=https://e.example/>\xe4</A>', ["ä"]),
        (b"<A HREF=https://e.example/>\xe4 and \x93more\x94</A>", ["ä and “more”"]),
        ("<A HREF=https://e.example/>ä</A>".encode() + b" \xe4", ["ä"]),
        ("\ufeff<A HREF=https://e.example/>ä</A>".encode("utf-16-le"), ["ä"]),
        (b"<A HREF=https://e.example/>\x00a\xe2\x80\xaeb\xed\xa0\x80&#0;&#x202e;</A>", None),
        (b"<A HREF=https://e.example/>one <b>bold</b>\n two<A HREF=https://e.example/2>", None),
        (b"<A NAME=x>no link</A>", []),
        (b"<A HREF=https://e.example/>a < b <3 ", ["a < b <3"]),
        (b'<A HREF="https://e.example/">' + b"x" * 5000, ["x" * 300]),
    ],
)
def test_texts(content: bytes, titles: list[str] | None) -> None:
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
        ("https://example.com/\x00", None),
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


def test_tags_are_bounded() -> None:
    words = ",".join([*(f"t{number}" for number in range(30)), "x" * 50, "!!!", "-", ""])
    folders = "".join(f"<H3>f{number}</H3><DL>" for number in range(60))
    (one,) = read(f'{folders}<A HREF="https://e.example/" TAGS="{words}">x</A>')
    assert one.tags == sorted(f"t{number}" for number in range(20))
    (two,) = read(f'<H3>outer</H3><DL>{folders}<A HREF="https://e.example/">x</A>')
    assert two.tags == sorted(f"f{number}" for number in range(40, 60))  # the nearest
    (three,) = read(f'<A HREF="https://e.example/" TAGS="{"x" * 50}">x</A>')
    assert three.tags == ["x" * 40]
    left = "</DL>" * 100
    (four,) = read(f'{folders}{left}<H3>in</H3><DL><A HREF="https://e.example/">x</A>')
    assert four.tags == ["in"]


@pytest.mark.parametrize("start", [b'<A HREF="', b"<A HREF='https://e.example/", b"<A " + b'""'])
def test_a_tag_without_an_end(start: bytes) -> None:
    with pytest.raises(Malformed):
        read(start + b"x" * (2 * 2**20))


@pytest.mark.parametrize("part", [b"<", b"<a ", b"<a '\"", b'<a "', b"<a a=a", b"<!--", b"&amp;"])
def test_time_grows_with_length_alone(part: bytes) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        read(part * (size // len(part)))
        return time.process_time() - started

    # Sixteen times as long would take 256 times as long, if it grew with the square.
    assert seconds(512 * 1024) < 0.2 + 60 * seconds(32 * 1024)


def test_what_is_written_is_read() -> None:
    links = [
        Bookmark(
            "https://example.com/?a=1&b='",
            '"It\'s" <b> & c &amp;',
            "About\n<DT><A HREF='https://evil.example/'>",
            ["a-b", "ä_"],
            True,
            at(1),
        ),
        Bookmark("https://example.com/" + "x" * 1000, "", "", ["-x-"], False, at(1)),
        Bookmark(
            "https://example.com/", "</A><DT><A HREF=https://evil.example/>", "", [], False, at(1)
        ),
    ]
    links = [each._replace(created_at=at(1_700_000_000)) for each in links]
    lines = [
        bookmarks.entry(
            link.url or "",
            link.title,
            description=link.description,
            tags=link.tags,
            archived=link.archived,
            created_at=at(1_700_000_000),
        )
        for link in links
    ]
    found = read(bookmarks.HEAD + "".join(lines) + bookmarks.FOOT)
    assert found == links


CASES = ROOT.parent / "shared" / "cases"
LINKS = "".join(f'<DT><A HREF="https://example.com/{n}">{n}</A>\n' for n in range(1000))


@pytest.mark.parametrize(
    ("first", "url", "title"),
    [
        (
            '<DT><A HREF="https://example.com/m" TITLE="24" monitor">m</A>',
            "https://example.com/m",
            "m",
        ),
        ("<DT><A HREF=https://example.com/o'reilly>r</A>", "https://example.com/o'reilly", "r"),
        ('<DT><A HREF="https://example.com/a""b">x</A>', "https://example.com/a", "x"),
        ("<DT><A HREF='https://example.com/a' 'x'>x</A>", "https://example.com/a", "x"),
        ('<DT><A HREF="https://example.com/a" =">x</A>', "https://example.com/a", "x"),
        ("<DT><A HREF=https://example.com/a</A><DT>", "https://example.com/a%3C/A", ""),
    ],
)
def test_broken_markup_costs_no_other_link(first: str, url: str, title: str) -> None:
    found = read(first + LINKS)
    assert (found[0].url, found[0].title) == (url, title)
    assert [each.url for each in found[1:]][-999:] == [
        f"https://example.com/{number}" for number in range(1, 1000)
    ]


def test_a_link_that_a_quote_swallows_is_counted() -> None:
    """It cannot be read, but nobody may be told that all is well."""
    found = read('<DT><A HREF="https://example.com/open>one</A>\n' + LINKS)
    assert len(found) == 1001
    assert sum(each.url is None for each in found) == 2


@pytest.mark.parametrize(
    ("end", "is_cut_off"),
    [
        ("", False),
        ("</DL><p>", False),
        ("<DD>see <a href='http://x.example'>it", False),
        ('<DD>see <a href="http://exa', True),
        ("<DT><A", True),
        ("<!-- a comment", True),
        ("<script>", True),
    ],
)
def test_an_end_that_hides_something_is_told(end: str, is_cut_off: bool) -> None:
    reader = Reader(most=10_000)
    found = reader.feed((LINKS + end).encode()) + reader.finish()
    assert [each.url for each in found] == [f"https://example.com/{n}" for n in range(1000)]
    assert reader.is_cut_off == is_cut_off


@pytest.mark.parametrize(
    ("markup", "note"),
    [
        ("<DD>a note", "a note"),
        ("<DD>a note\n  on <b>two</b> lines\n", "a note\non two lines"),
        ("<DD>one<br>two", "one\ntwo"),
        (
            '<DD>see <a href="https://b.example/">this</a> and more',
            "see this (https://b.example/) and more",
        ),
        ("<DD>می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻"),
        ("<DD>a \u202enote", "a note"),
        ("<DD>x</DD>", "x"),
        ("", ""),
    ],
)
def test_notes(markup: str, note: str) -> None:
    found = read(f'<DL><p><DT><A HREF="https://a.example/">x</A>\n{markup}\n<DT>{LINKS}')
    assert found[0].description == note
    assert len(found) == 1001


def test_a_file_without_dt_has_its_links_and_notes() -> None:
    found = read(
        '<A HREF="https://a.example/" ADD_DATE="1700000000">a</A><DD>note\n'
        '<A HREF="https://b.example/" ADD_DATE="1700000000">b</A>'
    )
    assert [(each.url, each.description) for each in found] == [
        ("https://a.example/", "note"),
        ("https://b.example/", ""),
    ]


def test_what_is_shortened_is_counted() -> None:
    reader = Reader(most=100)
    tags = ",".join(f"t{number}" for number in range(21))
    reader.feed(
        f"""<DL><DT><A HREF="https://a.example/">{"x" * 301}</A>
        <DT><A HREF="https://b.example/">b</A><DD>{"x" * 1001}
        <DT><A HREF="https://c.example/" TAGS="{tags}">c</A>
        <DT><A HREF="https://d.example/" TAGS="{"x" * 41}">d</A>
        <DT><A HREF="https://e.example/">{"x" * 300}</A><DD>{"x" * 1000}</DL>""".encode()
    )
    reader.finish()
    assert (reader.count, reader.shortened) == (5, 4)


@pytest.mark.skipif(not CASES.is_dir(), reason="files that are not part of the repository")
@pytest.mark.parametrize(
    ("name", "count"), [("stray-quote", 52), ("unquoted", 51), ("cut-off-note", 51), ("notes", 2)]
)
def test_files_that_people_have(name: str, count: int) -> None:
    found = read((CASES / f"bookmarks-{name}.html").read_bytes())
    assert len([each for each in found if each.url]) == len(found) == count


# What people write, in many scripts, with what markup and clean() have rules for.
TEXT = st.text(
    st.one_of(
        st.sampled_from("<>&\"'\u200c\u200d\u202e\u00ad \n\t\x00\u0301;=/"),
        st.characters(codec="utf-8"),
    ),
    max_size=60,
)


@given(
    st.lists(
        st.tuples(
            TEXT, TEXT, st.lists(TEXT, max_size=5), st.booleans(), st.integers(10**9, 17 * 10**8)
        ),
        max_size=5,
    )
)
def test_what_is_exported_is_imported_again(
    links: list[tuple[str, str, list[str], bool, int]],
) -> None:
    kept = [
        Bookmark(
            f"https://example.com/{number}",
            clean(title, 300),
            clean_lines(note, 1000),
            sorted({tag for word in words if (tag := addresses.as_tag(word))}),
            archived,
            at(seconds),
        )
        for number, (title, note, words, archived, seconds) in enumerate(links)
    ]
    lines = [
        bookmarks.entry(
            link.url or "",
            link.title,
            description=link.description,
            tags=link.tags,
            archived=link.archived,
            created_at=link.created_at or at(0),
        )
        for link in kept
    ]
    assert read("".join([bookmarks.HEAD, *lines, bookmarks.FOOT]), piece=64) == kept
