"""The list of links as FastAPI's full-stack template would answer it: functions in threads.

FastAPI, SQLAlchemy with psycopg 3 and its pool, a session for each request, entities that the
response's model is made of. Run by uvicorn.
"""

import hashlib
import os
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict
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
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"),
    pool_size=int(os.environ["DATABASE_POOL_SIZE"]),
    max_overflow=0,
    # As ours: queries that only read need no transaction.
    isolation_level="AUTOCOMMIT",
    connect_args={"options": "-c jit=off"},
)


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


class LinkAnswer(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    url: str
    title: str
    description: str
    tags: list[str]
    archived: bool
    created_at: datetime
    updated_at: datetime
    version: int
    fetched_at: datetime | None
    fetch_error: str | None


class LinksAnswer(BaseModel):
    items: list[LinkAnswer]
    next: str | None


def database() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


Database = Annotated[Session, Depends(database)]
Key = Annotated[str, Security(APIKeyHeader(name="X-API-Key"))]


def caller(session: Database, key: Key) -> int:
    found = session.execute(
        select(User.id, User.username, AccessToken.scopes)
        .join(AccessToken, AccessToken.user_id == User.id)
        .where(
            AccessToken.digest == hashlib.sha256(key.encode()).digest(),
            AccessToken.expires_at > func.now(),
            User.deactivated_at.is_(None),
        )
    ).one_or_none()
    if found is None:
        raise HTTPException(401)
    if "links:read" not in found.scopes:
        raise HTTPException(403)
    user_id: int = found.id
    return user_id


app = FastAPI()


@app.get("/api/v1/links", response_model=LinksAnswer)
def index(
    request: Request,
    session: Database,
    user_id: Annotated[int, Depends(caller)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, object]:
    query = select(Link).where(Link.user_id == user_id).order_by(Link.id.desc()).limit(limit)
    links = session.scalars(query).all()
    following = None
    if len(links) == limit:
        following = f"{request.url.path}?{urlencode({'limit': limit, 'before': links[-1].id})}"
    return {"items": links, "next": following}
