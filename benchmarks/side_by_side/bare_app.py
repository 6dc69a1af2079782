"""The baseline: a Quart view that returns a constant, to show the cost of Quart and Hypercorn."""

import os

from quart import Quart, Response

RESPONSE = os.environ["RESPONSE"]

app = Quart(__name__)


@app.get("/")
@app.get("/api/v1/links")
async def index() -> Response:
    return Response(RESPONSE, content_type="application/json")
