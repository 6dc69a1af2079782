"""URL converters for routes."""

from werkzeug.routing import IntegerConverter, Map

from quart_upsun.database import MAX_ID


class IdConverter(IntegerConverter):
    """`<id:name>` in a route: a number that no column can hold is a 404, and not a query."""

    def __init__(self, url_map: Map) -> None:
        super().__init__(url_map, max=MAX_ID)
