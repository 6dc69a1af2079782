"""Split text into the words that a full-text search compares, in queries as in documents.

PostgreSQL's own parser is not used. It keeps `node.js` and `20.11` in one piece, splits at the
marks of Hindi and Thai, and depends on the locale of the database.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from quart_upsun.text import MARKS, fold

__all__ = ["highlight", "query_words", "tsvector", "words"]

MAX_WORD_LENGTH = 200  # characters of a word; PostgreSQL takes lexemes of 2 KiB


# What words are made of: letters, numbers, and the marks above, below and between letters, which
# `\w` does not know. Of format characters, joiners stand within words and are dropped.
_DROPPED = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff\U000e0001-\U000e01ef"
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}{_DROPPED}])*")
_DROP = re.compile(f"[{_DROPPED}]+")
# Scripts that put no space between words: Han, Kana, and those of South-East Asia.
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
    """Return text in the form in which words are compared, which is without joiners."""
    return text.lower() if text.isascii() else fold(_DROP.sub("", text))


def words(text: str) -> list[str]:
    """Return the words of a text, in its order, each as often as it occurs.

    Of a script without spaces, each pair of neighbouring characters is a word, and the last one:
    so what is copied out of the middle of a sentence is found.
    """
    return [word for run in _WORD.findall(_folded(text)) for word in _split(run)]


def _split(run: str) -> Iterator[str]:
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
    """Return a `tsvector` literal of texts by weight: `tsvector(A="a title", B="tags")`."""
    places: dict[str, list[str]] = {}
    place = 0
    for weight, text in parts.items():
        for word in words(text):
            place += 1
            places.setdefault(word, []).append(f"{min(place, 16383)}{weight}")
    # A word is letters, numbers and marks: nothing in it has to be quoted.
    return " ".join(f"'{word}':{','.join(found[:255])}" for word, found in places.items())


def query_words(text: str, most: int) -> list[str]:
    """Return the first words to look for, each once."""
    return list(dict.fromkeys(words(text)))[:most]


def highlight(text: str, wanted: Sequence[str], mark: str, unmark: str) -> str:
    """Put marks around the words of a text that begin with one of those looked for."""
    beginnings = tuple(wanted)
    # What ends a word that is looked for is one by itself, but it is marked only behind its word.
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
