"""The pages with FastAPI, Jinja, async SQLAlchemy and asyncpg, served by uvicorn with uvloop."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Annotated, Any
from urllib.parse import urlencode

from argon2 import PasswordHasher
from fastapi import Depends, FastAPI, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from starlette.middleware.sessions import SessionMiddleware

from benchmarks.side_by_side.pages import site, tables

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"),
    pool_size=int(os.environ["DATABASE_POOL_SIZE"]),
    max_overflow=0,
    # As in this project: reads need no transaction.
    isolation_level="AUTOCOMMIT",
    connect_args={"server_settings": {"jit": "off"}},
)
sessions = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key=os.environ["SECRET_KEY"])
templates = Environment(
    loader=FileSystemLoader(site.TEMPLATES), autoescape=select_autoescape(), **site.JINJA_OPTIONS
)
templates.filters.update(site.FILTERS)


def url_for(endpoint: str, **values: Any) -> str:
    path = app.url_path_for(endpoint)
    return f"{path}?{urlencode(values)}" if values else path


templates.globals.update(
    site.GLOBALS, url_for=url_for, get_flashed_messages=lambda with_categories: []
)


async def database() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


Database = Annotated[AsyncSession, Depends(database)]


async def current_user(request: Request, session: Database) -> tables.User | None:
    login = request.session.get("user")
    return await session.scalar(tables.find_user(login)) if login else None


Visitor = Annotated[tables.User | None, Depends(current_user)]


async def logged_in_user(user: Visitor) -> tables.User:
    if user is None:
        raise HTTPException(401)
    return user


LoggedInUser = Annotated[tables.User, Depends(logged_in_user)]


def render(
    request: Request, template: str, user: tables.User | None, **context: Any
) -> HTMLResponse:
    page = templates.get_template(template).render(
        context,
        request=SimpleNamespace(path=request.url.path),  # as Flask names it
        current_user=user,
        login_bar=user is None and request.url.path != "/login/",
    )
    return HTMLResponse(page)


@app.get("/", name="public.home")
async def home(request: Request, user: Visitor) -> HTMLResponse:
    return render(request, "public/home.html", user)


@app.post("/login/", name="user.login")
async def login(
    request: Request,
    session: Database,
    username: Annotated[str, Form()],
    password: Annotated[str, Form()],
) -> RedirectResponse:
    """Log in. Not part of the comparison, and therefore without a form."""
    user = (await session.scalars(tables.named_user(username))).one()
    PasswordHasher().verify(user.password_hash or "", password)
    user.session_id = await session.scalar(tables.new_session(user))
    await session.commit()
    request.session["user"] = user.get_id()
    return RedirectResponse(url_for("user.members"), 303)


@app.get("/users/", name="user.members")
async def members(request: Request, session: Database, user: LoggedInUser) -> HTMLResponse:
    newest = (await session.execute(tables.newest_members())).all()
    return render(request, "user/members.html", user, members=newest)


@app.get("/links/", name="links.index")
async def index(request: Request, session: Database, user: LoggedInUser) -> HTMLResponse:
    newest_event_id = await session.scalar(tables.newest_event(user.id))
    links = (await session.scalars(tables.unread_links(user.id))).all()
    tags = (await session.scalars(tables.all_tags(user.id))).all()
    context = site.list_context(newest_event_id, links, tags)
    return render(request, "links/index.html", user, **context)


async def absent() -> None:
    raise HTTPException(404)


for endpoint, path in site.OTHER_PATHS.items():
    app.add_api_route(path, absent, name=endpoint)
