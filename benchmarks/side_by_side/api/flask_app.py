"""The list of links in the style of cookiecutter-flask.

Flask and SQLAlchemy with psycopg 3 and a connection pool, one session per request. Served by
gunicorn with threads, and by `flask run`.
"""

import os
from urllib.parse import urlencode

from flask import Blueprint, Flask, abort, g, jsonify, request
from flask.typing import ResponseReturnValue
from sqlalchemy import create_engine
from sqlalchemy.orm import scoped_session, sessionmaker

from benchmarks.side_by_side.api.tables import Link, holder, newest

blueprint = Blueprint("links", __name__, url_prefix="/api/v1")
sessions = scoped_session(sessionmaker())


def as_dict(link: Link) -> dict[str, object]:
    return {
        "id": link.id,
        "url": link.url,
        "title": link.title,
        "description": link.description,
        "tags": link.tags,
        "archived": link.archived,
        "created_at": link.created_at.isoformat(),
        "updated_at": link.updated_at.isoformat(),
        "version": link.version,
        "fetched_at": link.fetched_at and link.fetched_at.isoformat(),
        "fetch_error": link.fetch_error,
    }


@blueprint.before_request
def authenticate() -> None:
    token = request.headers.get("X-API-Key", "")
    found = sessions.execute(holder(token)).one_or_none()
    if found is None:
        abort(401)
    if "links:read" not in found.scopes:
        abort(403)
    g.user_id = found.id


@blueprint.get("/links")
def index() -> ResponseReturnValue:
    limit = request.args.get("limit", 20, type=int)
    if not 1 <= limit <= 100:
        abort(422)
    links = sessions.scalars(newest(g.user_id, limit)).all()
    following = None
    if len(links) == limit:
        following = f"{request.path}?{urlencode({'limit': limit, 'before': links[-1].id})}"
    return jsonify(items=[as_dict(link) for link in links], next=following)


def create_app() -> Flask:
    app = Flask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]
    engine = create_engine(
        os.environ["DATABASE_URL"],  # postgresql:// means psycopg 3
        pool_size=int(os.environ["DATABASE_POOL_SIZE"]),
        max_overflow=0,
        # As in this project: reads need no transaction.
        isolation_level="AUTOCOMMIT",
    )
    app.extensions["engine"] = engine
    sessions.configure(bind=engine)
    app.register_blueprint(blueprint)

    @app.teardown_appcontext
    def remove_session(error: BaseException | None) -> None:
        sessions.remove()

    return app
