"""Names of features, models and fields: singular forms, and names that are taken."""

import builtins
import keyword
import re
from collections.abc import Iterable

from pydantic import BaseModel

from development.feature.mistakes import MistakeError
from quart_upsun.database import Base
from quart_upsun.policy import SCOPE_LENGTH
from quart_upsun.web.forms import Form

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MAX_FEATURE_LENGTH = 30
# Columns of every generated model.
OWN_FIELDS = {"id", "user_id", "version", "created_at", "updated_at"}
# IDs of elements of the layout; a field has its name as its ID.
ELEMENT_IDS = {"main", "navigation"}
# Attributes of forms, models, rows and the models of the API, some of which instances set.
TAKEN_FIELDS = ELEMENT_IDS | {"meta", "errors", "data"}
TAKEN_FIELDS |= {name for each in (Form, Base, tuple, BaseModel) for name in dir(each)}

IRREGULAR = {
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "mice": "mouse",
    "feet": "foot",
    "teeth": "tooth",
    "movies": "movie",
    "cookies": "cookie",
    "calories": "calorie",
    "ties": "tie",
    "pies": "pie",
    "knives": "knife",
    "wives": "wife",
    "lives": "life",
    "leaves": "leaf",
    "shelves": "shelf",
    "halves": "half",
    "heroes": "hero",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "buses": "bus",
    "statuses": "status",
    "bonuses": "bonus",
    "viruses": "virus",
    "campuses": "campus",
    "caches": "cache",
    "axes": "axis",
    "analyses": "analysis",
    "indices": "index",
    "news": "news",
    "series": "series",
    "species": "species",
}


def singular(name: str) -> str:
    """Return the singular of a plural in snake case; a singular stays as it is.

    English has more exceptions than this knows, so `make feature` prints the result and accepts
    `SINGULAR=`.
    """
    *before, word = name.split("_")
    return "_".join((*before, _singular(word)))


def _singular(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(ss|sh|ch|x|zz)es$", word):
        return word[:-2]
    if word.endswith("s") and not re.search(r"(ss|us|is)$", word):
        return word[:-1]
    return word


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article, such as "an entry"."""
    # A "u" at the start is usually pronounced as in "unit", and "URL" as its letters.
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"


def check_feature_name(name: str, *, has_api: bool) -> None:
    """Check that a feature's name can be a package, a table and a part of a URL.

    Raises:
        MistakeError: it cannot.
    """
    if not name:
        raise MistakeError(
            'A name and fields are required: make feature NAME=notes FIELDS="title:str due:date?".'
        )
    if not NAME.fullmatch(name):
        raise MistakeError(
            "NAME must consist of lower-case letters, digits and single underscores, and start with"
            f" a letter, as in NAME=reading_notes; got {name!r}."
        )
    if _is_python(name):
        raise MistakeError(f"NAME={name} is a word of Python: choose another name.")
    longest = SCOPE_LENGTH - len(":write") if has_api else MAX_FEATURE_LENGTH
    if len(name) > longest:
        hint = ", or leave out the API with API=no" if has_api else ""
        raise MistakeError(
            f"NAME must have at most {longest} characters, but {name!r} has {len(name)}: choose a"
            f" shorter name{hint}."
        )


def check_singular(name: str) -> None:
    """Check that the singular form can be part of the names of functions and classes.

    Raises:
        MistakeError: it cannot.
    """
    if not NAME.fullmatch(name) or len(name) > MAX_FEATURE_LENGTH:
        raise MistakeError(
            f"SINGULAR must consist of at most {MAX_FEATURE_LENGTH} lower-case letters, digits and"
            f" single underscores, as in SINGULAR=reading_note; got {name!r}."
        )


def check_field_name(name: str, max_length: int) -> None:
    """Check that a name can be a column, an attribute of a form and a key of the API.

    Raises:
        MistakeError: it cannot.
    """
    if not NAME.fullmatch(name) or len(name) > max_length:
        raise MistakeError(
            f"A field's name must consist of at most {max_length} lower-case letters, digits and"
            f" single underscores, and start with a letter; got {name!r}."
        )
    if name in OWN_FIELDS:
        raise MistakeError(f"Every feature has a field {name!r} already: leave it out of FIELDS.")
    if keyword.iskeyword(name):
        raise MistakeError(f"The field {name!r} is a word of Python: choose another name for it.")
    if name in TAKEN_FIELDS or name.startswith(("model_", "validate_")):
        raise MistakeError(
            f"The field {name!r} would hide an attribute of SQLAlchemy, WTForms or pydantic: choose"
            " another name for it."
        )


def check_free(name: str, taken: Iterable[str], what: str) -> None:
    """Check that a name is not among those that are taken.

    Raises:
        MistakeError: it is.
    """
    if name in set(taken):
        raise MistakeError(f"{what} {name!r} already exists: choose another name.")


def _is_python(name: str) -> bool:
    return keyword.iskeyword(name) or hasattr(builtins, name)
