"""The list of links in the style of FastAPI's full-stack template: functions in threads.

FastAPI and SQLAlchemy with psycopg 3 and a connection pool, one session per request; the response
model is created from ORM objects. Served by uvicorn.
"""

import os
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from benchmarks.side_by_side.api.fastapi_answers import (
    Key,
    Limit,
    LinksAnswer,
    authorized,
    following,
)
from benchmarks.side_by_side.api.tables import holder, newest

engine = create_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"),
    pool_size=int(os.environ["DATABASE_POOL_SIZE"]),
    max_overflow=0,
    # As in this project: reads need no transaction.
    isolation_level="AUTOCOMMIT",
    connect_args={"options": "-c jit=off"},
)


def database() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


Database = Annotated[Session, Depends(database)]


def caller(session: Database, key: Key) -> int:
    return authorized(session.execute(holder(key)).one_or_none())


app = FastAPI()


@app.get("/api/v1/links", response_model=LinksAnswer)
def index(
    request: Request,
    session: Database,
    user_id: Annotated[int, Depends(caller)],
    limit: Limit = 20,
) -> dict[str, object]:
    links = session.scalars(newest(user_id, limit)).all()
    return {
        "items": links,
        "next": following(request, limit, links[-1].id) if len(links) == limit else None,
    }
