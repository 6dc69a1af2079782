"""Types and defaults for the fields of API models."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from quart_upsun.database import MAX_ID

Id = Annotated[int, Field(ge=1, le=MAX_ID)]


def clean_validator(
    clean_function: Callable[[str], str], max_length: int, *, min_length: int = 0
) -> AfterValidator:
    """Clean a text, then check its length again: cleaning can make it longer, or leave nothing.

    Args:
        clean_function: such as `quart_upsun.text.clean`.
        max_length: in characters.
        min_length: in characters; 1 for a text that must not be empty.
    """

    def check(text: str) -> str:
        result = clean_function(text)
        if len(result) > max_length:
            raise ValueError(f"String should have at most {max_length} characters")
        if len(result) < min_length:
            raise ValueError(f"String should have at least {min_length} visible character")
        return result

    return AfterValidator(check)


def omitted() -> Any:
    """Return the value of an omitted field, which `model_dump(exclude_unset=True)` leaves out.

    As the `default_factory` of a field that rejects null, it keeps a default out of the schema,
    which would suggest that an omitted field is cleared.
    """
    return None
