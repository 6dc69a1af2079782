"""The list of links as an application of cookiecutter-flask would answer it.

Flask, SQLAlchemy with psycopg 3 and its pool, one session a request. Run by gunicorn with threads,
and by `flask run`.
"""

import hashlib
import os
from datetime import datetime
from urllib.parse import urlencode

from flask import Blueprint, Flask, abort, g, jsonify, request
from flask.typing import ResponseReturnValue
from sqlalchemy import (
    ARRAY,
    BigInteger,
    ForeignKey,
    LargeBinary,
    String,
    create_engine,
    func,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session, sessionmaker

blueprint = Blueprint("links", __name__, url_prefix="/api/v1")
sessions = scoped_session(sessionmaker())


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    username: Mapped[str]
    deactivated_at: Mapped[datetime | None]


class AccessToken(Base):
    __tablename__ = "access_tokens"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id"))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    expires_at: Mapped[datetime]


class Link(Base):
    __tablename__ = "links"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    user_id: Mapped[int] = mapped_column(BigInteger, ForeignKey("users.id"))
    url: Mapped[str]
    title: Mapped[str]
    description: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    archived: Mapped[bool]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    version: Mapped[int]
    fetched_at: Mapped[datetime | None]
    fetch_error: Mapped[str | None]

    def as_dict(self) -> dict[str, object]:
        return {
            "id": self.id,
            "url": self.url,
            "title": self.title,
            "description": self.description,
            "tags": self.tags,
            "archived": self.archived,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "version": self.version,
            "fetched_at": self.fetched_at and self.fetched_at.isoformat(),
            "fetch_error": self.fetch_error,
        }


@blueprint.before_request
def authenticate() -> None:
    digest = hashlib.sha256(request.headers.get("X-API-Key", "").encode()).digest()
    found = sessions.execute(
        select(User.id, User.username, AccessToken.scopes)
        .join(AccessToken, AccessToken.user_id == User.id)
        .where(
            AccessToken.digest == digest,
            AccessToken.expires_at > func.now(),
            User.deactivated_at.is_(None),
        )
    ).one_or_none()
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
    query = select(Link).where(Link.user_id == g.user_id).order_by(Link.id.desc()).limit(limit)
    links = sessions.scalars(query).all()
    following = None
    if len(links) == limit:
        following = f"{request.path}?{urlencode({'limit': limit, 'before': links[-1].id})}"
    return jsonify(items=[link.as_dict() for link in links], next=following)


def create_app() -> Flask:
    app = Flask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.config["SECRET_KEY"] = os.environ["SECRET_KEY"]
    engine = create_engine(
        os.environ["DATABASE_URL"],  # postgresql:// means psycopg 3
        pool_size=int(os.environ["DATABASE_POOL_SIZE"]),
        max_overflow=0,
        # As ours: queries that only read need no transaction.
        isolation_level="AUTOCOMMIT",
    )
    app.extensions["engine"] = engine
    sessions.configure(bind=engine)
    app.register_blueprint(blueprint)

    @app.teardown_appcontext
    def remove_session(error: BaseException | None) -> None:
        sessions.remove()

    return app
