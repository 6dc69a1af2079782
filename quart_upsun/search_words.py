"""Tokenize text for PostgreSQL full-text search, for documents and queries alike.

PostgreSQL's own parser does not fit: it keeps `node.js` and `20.11` as one token, splits words at
the combining marks of Hindi and Thai, and depends on the locale of the database.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from quart_upsun.text import MARKS, fold

__all__ = ["highlight", "query_words", "tsvector", "words"]

MAX_WORD_LENGTH = 200  # characters; PostgreSQL accepts lexemes up to 2 KiB


# Words consist of letters, numbers and combining marks, which `\w` does not match. Joiners and
# other format characters inside a word are dropped. Each arrow and emoji is a word, too.
_DROPPED = (
    "\u00ad\u034f\u061c\u180e\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff\U000e0001-\U000e01ef"
    "\U0001f3fb-\U0001f3ff"  # skin tones
)
_SYMBOLS = "\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\U0001f000-\U0001faff"
_WORD = re.compile(
    rf"[^\W_](?:[^\W_]|[{MARKS}{_DROPPED}])*|[{_SYMBOLS}](?:[{_SYMBOLS}{MARKS}{_DROPPED}])*"
)
_SYMBOL = re.compile(f"[{_SYMBOLS}]")
_DROP = re.compile(f"[{_DROPPED}]+")
# Scripts without spaces between words: Han, Kana, and South-East Asian scripts.
_UNSPACED = (
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
    "\ua980-\ua9ff\uaa60-\uaadf"
)
_PARTS = re.compile(f"[{_UNSPACED}](?:[{_UNSPACED}{MARKS}])*|[^{_UNSPACED}]+")
_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_CLUSTER = re.compile(f".[{MARKS}]*", re.DOTALL)


def _folded(text: str) -> str:
    """Normalize text for comparison, and drop joiners."""
    return text.lower() if text.isascii() else fold(_DROP.sub("", text))


def words(text: str) -> list[str]:
    """Return the words of a text in order, with repetitions.

    In scripts without spaces, every pair of adjacent characters is a word, and so is the last
    character. A phrase copied from the middle of a sentence is therefore found.
    """
    return [word for run in _WORD.findall(_folded(text)) for word in _split(run)]


def _split(run: str) -> Iterator[str]:
    if _SYMBOL.match(run):
        yield from _SYMBOL.findall(run)
        return
    if not _IS_UNSPACED.search(run):
        yield run[:MAX_WORD_LENGTH]
        return
    for part in _PARTS.findall(run):
        if not _IS_UNSPACED.match(part):
            yield part[:MAX_WORD_LENGTH]
            continue
        clusters = _CLUSTER.findall(part)
        for number, cluster in enumerate(clusters):
            yield cluster + (clusters[number + 1] if number + 1 < len(clusters) else "")


def tsvector(**parts: str) -> str:
    """Return a `tsvector` literal for texts by weight: `tsvector(A="a title", B="tags")`."""
    places: dict[str, list[str]] = {}
    place = 0
    for weight, text in parts.items():
        for word in words(text):
            place += 1
            places.setdefault(word, []).append(f"{min(place, 16383)}{weight}")
    # Words contain letters, numbers, marks and symbols only, so nothing needs escaping.
    return " ".join(f"'{word}':{','.join(found[:255])}" for word, found in places.items())


def query_words(text: str, most: int) -> list[str]:
    """Return the first `most` distinct words of a search query."""
    return list(dict.fromkeys(words(text)))[:most]


def highlight(text: str, wanted: Sequence[str], mark: str, unmark: str) -> str:
    """Insert `mark` and `unmark` around the words of a text that begin with a wanted word."""
    beginnings = tuple(wanted)
    # A pair's second character is a word, too. It is highlighted only together with its pair.
    ends = {word[1:] for word in wanted if len(word) > 1}
    exact = {word for word in wanted if _IS_UNSPACED.match(word) and word not in ends}

    def part(match: re.Match[str]) -> str:
        found = match[0]
        if not _IS_UNSPACED.match(found):
            begins = any(word.startswith(beginnings) for word in words(found))
            return f"{mark}{found}{unmark}" if begins else found
        clusters = _CLUSTER.findall(found)
        is_marked = [_folded(cluster) in exact for cluster in clusters]
        for number, pair in enumerate(pairwise(clusters)):
            if _folded("".join(pair)) in exact:
                is_marked[number] = is_marked[number + 1] = True
        return "".join(
            f"{mark}{cluster}{unmark}" if shown else cluster
            for cluster, shown in zip(clusters, is_marked, strict=True)
        ).replace(f"{unmark}{mark}", "")

    return _WORD.sub(lambda match: _PARTS.sub(part, match[0]), text)
