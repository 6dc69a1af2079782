"""The list of links with FastAPI, async SQLAlchemy and asyncpg, served by uvicorn with uvloop."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.side_by_side.api.fastapi_answers import (
    Key,
    Limit,
    LinkAnswer,
    LinksAnswer,
    authorized,
    following,
)
from benchmarks.side_by_side.api.tables import holder, newest

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"),
    pool_size=int(os.environ["DATABASE_POOL_SIZE"]),
    max_overflow=0,
    # As in this project: reads need no transaction.
    isolation_level="AUTOCOMMIT",
    connect_args={"server_settings": {"jit": "off"}},
)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def database() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


Database = Annotated[AsyncSession, Depends(database)]


async def caller(session: Database, key: Key) -> int:
    return authorized((await session.execute(holder(key))).one_or_none())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.get("/api/v1/links")
async def index(
    request: Request,
    session: Database,
    user_id: Annotated[int, Depends(caller)],
    limit: Limit = 20,
) -> LinksAnswer:
    links = (await session.scalars(newest(user_id, limit))).all()
    return LinksAnswer(
        items=[LinkAnswer.model_validate(link) for link in links],
        next=following(request, limit, links[-1].id) if len(links) == limit else None,
    )
