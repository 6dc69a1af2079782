"""Full-text search in all scripts."""
# ruff: noqa: RUF001 - texts in other scripts are meant

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from quart import Quart
from sqlalchemy import text

from app.links import queries, search, search_index
from quart_upsun import search_words, urls
from quart_upsun.database import Database
from quart_upsun.text import clean
from tests.features.factories import Person

TITLES = {
    "Getting started with Node.js 20.11, TCP/IP": [
        *("node.js", "Node", "20.11", "tcp/ip", "js", "IP", "start", "NODE.JS 20.11"),
    ],
    "What's new in Python 3.13": ["3.13", "what's", "new in", "PYTHON"],
    "Deploy ASP.NET on fly.io": ["asp.net", "fly.io", "net"],
    "Moving to C++20": ["c++20", "20", "c++"],
    "Release v1.2.3 (beta)": ["v1.2.3", "beta", "(beta)"],
    "Write to user@example.net": ["user@example.net", "example.net"],
    "See https://example.org/a/b?c=d": ["https://example.org/a/b?c=d", "example.org"],
    "Le début de l’été": ["été", "l'été", "l’été", "e\u0301te\u0301", "ÉTÉ"],
    "Séance de travail": ["se\u0301ance", "séance"],
    "हिन्दी विकिपीडिया": ["हिन्दी", "विकिपीडिया", "हिन्"],
    "தமிழ் இலக்கியம்": ["தமிழ்", "இலக்கியம்"],
    "می\u200cخواهم بروم": ["می\u200cخواهم", "میخواهم", "بروم"],
    "東京都の天気予報": ["天気", "東京", "天気予報", "東京都の天気予報", "天", "報"],
    "การพยากรณ์อากาศ": ["อากาศ", "พยากรณ์", "การพยากรณ์อากาศ"],
    "ＡＢＣ入門": ["abc", "ＡＢＣ", "入門"],
    "iPhoneの使い方": ["iphone", "使い方", "iPhoneの"],
    "İzmir ISTANBUL Straße": ["izmir", "İzmir", "istanbul", "strasse", "STRASSE"],
    "שָׁלוֹם עולם": ["שָׁלוֹם", "עולם"],
    "서울 날씨": ["서울", "날씨"],
    "Ahoy 👩\u200d💻👍🏽 🇩🇪→🏴\u200d☠\ufe0f": [
        *("👩\u200d💻", "👍🏽", "👍", "🇩🇪", "→", "🏴\u200d☠\ufe0f", "☠"),
        "👩\u200d💻👍🏽 🇩🇪→",
    ],
}
PAIRS = [(title, query) for title, queries in TITLES.items() for query in queries]


@pytest.fixture
async def ada(app: Quart) -> int:
    return (await Person().register(app)).id


@pytest.mark.parametrize(("title", "query"), PAIRS)
async def test_search_finds_a_title(database: Database, ada: int, title: str, query: str) -> None:
    async with database.write() as session:
        await queries.save_link(session, ada, "https://site.example/", title=title)
        await queries.save_link(session, ada, "https://site.example/other", title="Unrelated text")
    async with database.read() as session:
        found = await search.search(session, ada, query, limit=10)
    assert [each.item.title for each in found] == [title]
    assert search.MARK_START in found[0].title


ALPHABETS = st.sampled_from(
    [
        *("abcXYZ", "àéîõüßÉİı", "абвгд", "αβγδΣς", "אבגדהשׁ", "ابتثج", "हिन्दीक्ष", "தமிழ்க்"),
        *(
            "東京都天気予報",
            "あいうえおカキク",
            "ไทยสวัสดี",
            "ພາສາລາວ",
            "ភាសាខ្មែរ",
            "မြန်မာ",
            "한국어서울",
        ),
        *("ＡＢｃ１２", "ﬁﬂ①②", "0123456789", "e\u0301a\u0308", "می\u200cخو", "🎉👍🏽→❤\ufe0f"),
    ]
)
WORD = ALPHABETS.flatmap(lambda letters: st.text(letters, min_size=1, max_size=12))
SEPARATOR = st.sampled_from([" ", ". ", ", ", "/", "-", "’", "'", ": ", "（", "、", "「", "!", "+"])


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(WORD, SEPARATOR), min_size=1, max_size=6), st.integers(0, 5))
async def test_every_word_of_a_title_finds_it(
    database: Database, parts: list[tuple[str, str]], number: int
) -> None:
    title = "".join(word + separator for word, separator in parts)
    query = parts[number % len(parts)][0]
    if not search_words.words(query):  # combining marks without a letter
        return
    lexemes = " & ".join(
        f"'{word}':*" for word in search_words.query_words(query, search.MAX_WORDS)
    )
    matches = text("SELECT CAST(:vector AS tsvector) @@ CAST(:query AS tsquery)")
    async with database.read() as session:
        assert await session.scalar(
            matches,
            {
                "vector": search_index.search_vector(1, url="https://example.com/", title=title),
                "query": f"'{search_index.owner_lexeme(1)}' & {lexemes}",
            },
        ), (title, query)


async def test_search_index_updates_each_field_separately(database: Database, ada: int) -> None:
    async def finds(query: str) -> bool:
        async with database.read() as session:
            return bool(await search.search(session, ada, query, limit=1))

    async with database.write() as session:
        item, _ = await queries.save_link(
            session, ada, "https://where.example/", title="First", tags=["tagged"]
        )
        await queries.update_link(session, ada, item.id, description="a note")
    assert all([await finds(word) for word in ("where", "first", "tagged", "note")])
    async with database.write() as session:
        await queries.update_link(session, ada, item.id, title="Second")
    assert not await finds("first")
    assert all([await finds(word) for word in ("where", "second", "tagged", "note")])
    async with database.write() as session:
        await queries.update_link(session, ada, item.id, tags=["other"], description="")
    assert not await finds("tagged")
    assert not await finds("note")
    assert all([await finds(word) for word in ("where", "second", "other")])


async def test_owner_lexeme_cannot_be_searched(database: Database, ada: int) -> None:
    other = (await Person().create(database)).id
    async with database.write() as session:
        await queries.save_link(session, ada, "https://a.example/", title="Same")
        await queries.save_link(session, other, "https://a.example/", title="Same")
    async with database.read() as session:
        assert len(await search.search(session, ada, "same", limit=10)) == 1
        for query in (f"@{ada}", f"{ada}", "@"):
            assert await search.search(session, ada, query, limit=10) == []


def test_only_search_terms_are_highlighted() -> None:
    def marked(title: str, query: str) -> str:
        return search_words.highlight(title, search_words.query_words(query, 8), "[", "]")

    assert marked("東京都の天気予報と気温", "天気") == "東京都の[天気]予報と気温"
    assert marked("Node.js and nodes", "node") == "[Node].js and [nodes]"
    assert marked("Le début de l’été", "été") == "Le début de l’[été]"
    assert marked("<b>Ｎｏｄｅ</b>", "node") == "<b>[Ｎｏｄｅ]</b>"
    assert marked("a 👩\u200d💻👍🏽 b", "👍") == "a [👩\u200d💻👍🏽] b"


async def test_search_finds_a_url_as_displayed(database: Database, ada: int) -> None:
    url = urls.normalize_url("https://bücher.example/caf%C3%A9/a-page")
    async with database.write() as session:
        item, _ = await queries.save_link(session, ada, url)
    async with database.read() as session:
        for query in (
            *("bücher", "café", "https://bücher.example/café", "a-page", url),
            *("caf%C3%A9", f"{url}?utm_source=x", f"see {url}?utm_medium=y&gclid=1"[4:]),
        ):
            assert [each.item.id for each in await search.search(session, ada, query, limit=2)] == [
                item.id
            ]


@pytest.mark.parametrize(
    "title", ["Hidden\u202etxt", "a\u2066b\u2069c", "see https://a.example/?utm_source=x"]
)
async def test_search_finds_a_title_by_its_uncleaned_text(
    database: Database, ada: int, title: str
) -> None:
    async with database.write() as session:
        item, _ = await queries.save_link(session, ada, "https://b.example/", title=clean(title))
    async with database.read() as session:
        found = await search.search(session, ada, title, limit=2)
    assert [each.item.id for each in found] == [item.id]
