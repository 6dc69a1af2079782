"""The reading list as JSON: `/api/v1/links` and what belongs to it."""

from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from quart import Blueprint, Response, request, url_for
from quart_schema import tag_blueprint
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.auth import by_caller, caller, scoped
from app.api.idempotency import idempotent
from app.api.operations import Text, answer, answers, asks, refuses, takes
from app.api.problems import Problem
from app.api.scopes import Scope
from app.database import LARGEST_ID, direct, read, write
from app.http import private
from app.links import addresses, library
from app.links.library import Changed, Item
from app.links.models import DESCRIPTION_LENGTH, TAG_LENGTH, TAGS, TITLE_LENGTH, URL_LENGTH
from app.links.selection import STATES
from app.security.audit import unaudited
from app.security.limits import Limit, limited

blueprint = Blueprint("links_api", __name__, url_prefix="/api/v1")
tag_blueprint(blueprint, ["Links"])

READ = Scope("links:read", "See your links and tags")
WRITE = Scope("links:write", "Save, change and delete links")

CHANGES = Limit("links_api", count=300, seconds=60)

LINK = f"/links/<int(max={LARGEST_ID}):id>"
ENTITY_TAG = {"ETag": "The version of the link, for `If-Match`"}
NO_SUCH_LINK = "You have no link of this number."
OLD_VERSION = "The link has changed since: it is not at the version that If-Match names."

Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


Tag = Annotated[Text, Field(max_length=TAG_LENGTH), AfterValidator(addresses.one_tag)]
Tags = Annotated[list[Tag], Field(max_length=TAGS)]


class LinkAnswer(BaseModel):
    """A link."""

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
    fetched_at: datetime | None = Field(
        description="When its page was last asked for; null until the first time"
    )
    fetch_error: str | None = Field(description="Why its page could not be fetched")


class LinksAnswer(BaseModel):
    """A part of the list, the newest or best first."""

    items: list[LinkAnswer]
    next: str | None = Field(description="Where the next part is; null after the last")


class NewLink(BaseModel):
    """What is saved."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[Text, Field(max_length=URL_LENGTH)]
    title: Annotated[Text, Field(max_length=TITLE_LENGTH)] = ""
    tags: Tags = []


class LinkChange(BaseModel):
    """What is changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[Text, Field(max_length=TITLE_LENGTH)] | None = None
    description: Annotated[Text, Field(max_length=DESCRIPTION_LENGTH)] | None = None
    tags: Tags | None = None
    archived: bool | None = None


class TagsAnswer(BaseModel):
    """The tags of an account, by the alphabet."""

    items: list[str]


class Query(BaseModel):
    """Which part of the list."""

    limit: int = Field(20, ge=1, le=100, description="How many at most")
    state: Literal["unread", "archived", "all"] = Field("all", description="Which of them")
    tag: Tag | None = Field(None, description="Only those with this tag")
    q: Annotated[Text, Field(max_length=200)] | None = Field(
        None, description="Words to search for; then state and tag are not looked at"
    )
    before: Id | None = Field(None, description="Only those saved before this one")
    after: Annotated[Text, Field(max_length=100)] | None = Field(
        None, description="Where a search goes on, as `next` has it"
    )


@blueprint.get("/links")
@private
@scoped(READ)
@asks(Query)
@answers(200, LinksAnswer, headers={"Link": "The next part, as RFC 8288 has it"})
async def index(query: Query) -> Response:
    """List links, or search them."""
    limit = query.limit
    if query.q is None:
        async with direct() as connection:
            items = await library.page(
                connection,
                caller().id,
                archived=STATES[query.state],
                tag=query.tag,
                before=query.before,
                limit=limit,
            )
        following = {"before": str(items[-1].id)} if len(items) == limit else {}
    else:
        async with read() as session:
            try:
                found = await library.search(
                    session, caller().id, query.q, after=query.after, limit=limit
                )
            except ValueError:
                raise Problem(422, "`after` is not from a `next` of this search.") from None
        items = [each.item for each in found]
        following = {"after": found[-1].cursor} if len(found) == limit else {}
    link = _next(following)
    return answer(
        LinksAnswer.model_validate({"items": items, "next": link}),
        headers={"Link": f'<{link}>; rel="next"'} if link else {},
    )


@blueprint.post("/links")
@private
@scoped(WRITE)
@limited(CHANGES, by_caller)
@unaudited("concerns no account's security")
@takes(NewLink)
@answers(201, LinkAnswer, headers={"Location": "Where it is", **ENTITY_TAG})
@answers(200, LinkAnswer, headers={"Location": "Where it is", **ENTITY_TAG})
@idempotent
async def save(data: NewLink, session: AsyncSession) -> Response:
    """Save a link. One that is there already stays as it is, and is answered with 200."""
    try:
        url = addresses.normalize(data.url)
    except ValueError as error:
        raise _unfit(str(error), "#/url") from None
    tags = sorted(set(data.tags))
    item, is_new = await library.save(
        session, caller().id, url, title=" ".join(data.title.split()), tags=tags
    )
    return _answer(item, 201 if is_new else 200, Location=url_for("links_api.show", id=item.id))


@blueprint.get(LINK)
@private
@scoped(READ)
@answers(200, LinkAnswer, headers=ENTITY_TAG)
@answers(304)
async def show(id: int) -> Response:
    """Return a link."""
    async with read() as session:
        item = await library.get(session, caller().id, id)
    if item is None:
        raise Problem(404, NO_SUCH_LINK)
    if request.if_none_match.contains(str(item.version)):
        return Response(status=304, headers={"ETag": _etag(item)})
    return _answer(item)


@blueprint.patch(LINK)
@private
@scoped(WRITE)
@limited(CHANGES, by_caller)
@unaudited("concerns no account's security")
@takes(LinkChange)
@answers(200, LinkAnswer, headers=ENTITY_TAG)
@refuses(412, OLD_VERSION)
async def change(id: int, data: LinkChange) -> Response:
    """Change a link; with `If-Match` only the version that was seen."""
    values = data.model_dump(exclude_none=True)
    if "title" in values:
        values["title"] = " ".join(values["title"].split())
    if "tags" in values:
        values["tags"] = sorted(set(values["tags"]))
    try:
        async with write() as session:
            if values:
                item = await library.change(session, caller().id, id, version=_expected(), **values)
            else:
                item = await library.get(session, caller().id, id)
    except Changed:
        raise Problem(412, OLD_VERSION) from None
    if item is None:
        raise Problem(404, NO_SUCH_LINK)
    return _answer(item)


@blueprint.delete(LINK)
@private
@scoped(WRITE)
@limited(CHANGES, by_caller)
@unaudited("concerns no account's security")
@answers(204)
@refuses(412, OLD_VERSION)
async def remove(id: int) -> Response:
    """Delete a link; with `If-Match` only the version that was seen."""
    try:
        async with write() as session:
            gone = await library.remove(session, caller().id, id, version=_expected())
    except Changed:
        raise Problem(412, OLD_VERSION) from None
    if not gone:
        raise Problem(404, NO_SUCH_LINK)
    return Response(status=204)


@blueprint.get("/tags")
@private
@scoped(READ)
@answers(200, TagsAnswer)
async def tags() -> Response:
    """List the tags that links have."""
    async with read() as session:
        found = await library.tags(session, caller().id)
    return answer(TagsAnswer(items=found))


def _answer(item: Item, status: int = 200, **headers: str) -> Response:
    return answer(LinkAnswer.model_validate(item), status, headers={"ETag": _etag(item), **headers})


def _etag(item: Item) -> str:
    return f'"{item.version}"'


def _expected() -> int | None:
    """Return the version that `If-Match` names; None if any will do.

    Raises:
        Problem: 412, it names one that no link can have.
    """
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    for etag in request.if_match:
        if etag.isascii() and etag.isdecimal() and len(etag) < 10:
            return int(etag)
    raise Problem(412, OLD_VERSION)


def _next(following: dict[str, str]) -> str | None:
    """Return the address of the next part: this one, but for where it begins."""
    if not following:
        return None
    kept = {name: value for name, value in request.args.items() if name not in {"before", "after"}}
    return f"{request.path}?{urlencode({**kept, **following})}"


def _unfit(detail: str, pointer: str) -> Problem:
    return Problem(
        422, "What was sent does not fit.", errors=[{"detail": detail, "pointer": pointer}]
    )
