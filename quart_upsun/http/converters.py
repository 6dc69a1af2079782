"""URL converters for routes."""

from werkzeug.routing import IntegerConverter, Map

from quart_upsun.database import MAX_ID


class IdConverter(IntegerConverter):
    """The `<id:name>` converter. A number too large for the database column is a 404."""

    def __init__(self, url_map: Map) -> None:
        super().__init__(url_map, max=MAX_ID)
