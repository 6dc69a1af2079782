"""The reading list as JSON: `/api/v1/links` and what belongs to it."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from quart import Blueprint, Response, request, url_for
from quart_schema import tag_blueprint
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import database
from app.links import addresses, library, search
from app.links.library import Item
from app.links.models import DESCRIPTION_LENGTH, TAG_LENGTH, TAGS, TITLE_LENGTH, URL_LENGTH
from app.links.selection import SEARCHES, STATES
from quart_upsun.api.auth import by_caller, caller, scope_required
from quart_upsun.api.idempotency import idempotent
from quart_upsun.api.problems import DETAILS, Problem
from quart_upsun.api.scopes import Scope
from quart_upsun.api.validation import (
    Text,
    document_problem,
    document_response,
    json_response,
    validate_json,
    validate_query,
)
from quart_upsun.database import LARGEST_ID
from quart_upsun.http import preconditions
from quart_upsun.policy import no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import Limit, rate_limit, searching
from quart_upsun.text import clean, clean_lines

blueprint = Blueprint("links_api", __name__, url_prefix="/api/v1")
tag_blueprint(blueprint, ["Links"])

READ = Scope("links:read", "See your links and tags")
WRITE = Scope("links:write", "Save, change and delete links")

CHANGES = Limit("links_api", count=300, seconds=60)

LINK = "/links/<id:id>"
NEXT = {"Link": "The next page, as RFC 8288 has it"}
ENTITY_TAG = {"ETag": "The version of the link, for `If-Match`"}
NO_SUCH_LINK = "You have no link of this number."

Id = Annotated[int, Field(ge=1, le=LARGEST_ID)]


Tag = Annotated[Text, Field(max_length=TAG_LENGTH), AfterValidator(addresses.one_tag)]
Tags = Annotated[list[Tag], Field(max_length=TAGS)]


def _cleaned(function: Callable[[str], str], most: int) -> AfterValidator:
    """Clean a text; NFC can make it longer than it was when its length was checked."""

    def check(text: str) -> str:
        result = function(text)
        if len(result) > most:
            raise ValueError(f"String should have at most {most} characters")
        return result

    return AfterValidator(check)


Title = Annotated[Text, Field(max_length=TITLE_LENGTH), _cleaned(clean, TITLE_LENGTH)]
Description = Annotated[
    Text, Field(max_length=DESCRIPTION_LENGTH), _cleaned(clean_lines, DESCRIPTION_LENGTH)
]


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
    title: Title = ""
    tags: Tags = []


class LinkChange(BaseModel):
    """The fields to change. A field that is left out stays as it is; `null` is not a value."""

    model_config = ConfigDict(extra="forbid")

    # Optional fields that refuse null. The factories are never used, and keep defaults out of the
    # schema, where they would claim that a field left out is emptied.
    title: Title = Field(
        default_factory=str, description="Empty to take the page's own title again"
    )
    description: Description = Field(default_factory=str)
    tags: Tags = Field(default_factory=list, description="Replace all tags")
    archived: bool = Field(default_factory=bool)


class TagsAnswer(BaseModel):
    """A page of the account's tags, in alphabetical order."""

    items: list[str]
    next: str | None = Field(description="The URL of the next page; null on the last page")


class TagsQuery(BaseModel):
    """Which page of the tags."""

    limit: int = Field(200, ge=1, le=200, description="How many at most")
    after: Annotated[Text, Field(max_length=TAG_LENGTH)] = Field(
        "", description="Only tags after this one, as `next` has it"
    )


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
@no_store
@scope_required(READ)
@rate_limit(SEARCHES, by_caller, when=searching)
@no_rate_limit("one page by an index")
@validate_query(Query)
@document_response(200, LinksAnswer, headers=NEXT)
async def index(query: Query) -> Response:
    """List links, or search them."""
    limit = query.limit
    if query.q is None:
        async with database.direct() as connection:
            items = await library.page(
                connection,
                caller().id,
                archived=STATES[query.state],
                tag=query.tag,
                before=query.before,
                limit=limit + 1,  # one more tells whether there is a next page
            )
        following = {"before": str(items[limit - 1].id)} if len(items) > limit else {}
    else:
        async with database.read() as session:
            try:
                found = await search.search(
                    session, caller().id, query.q, after=query.after, limit=limit + 1
                )
            except ValueError:
                raise Problem(422, "`after` is not from a `next` of this search.") from None
        items = [each.item for each in found]
        following = {"after": found[limit - 1].cursor} if len(found) > limit else {}
    link = _next(following)
    return _page(LinksAnswer.model_validate({"items": items[:limit], "next": link}), link)


@blueprint.post("/links")
@no_store
@scope_required(WRITE)
@rate_limit(CHANGES, by_caller)
@not_audited("concerns no account's security")
@validate_json(NewLink)
@document_response(201, LinkAnswer, headers={"Location": "Where it is", **ENTITY_TAG})
@document_response(200, LinkAnswer, headers={"Location": "Where it is", **ENTITY_TAG})
@idempotent
async def save(data: NewLink, session: AsyncSession) -> Response:
    """Save a link. One that is there already stays as it is, and is answered with 200."""
    try:
        url = addresses.normalize(data.url)
    except ValueError as error:
        raise _unfit(str(error), "#/url") from None
    tags = sorted(set(data.tags))
    try:
        item, is_new = await library.save(session, caller().id, url, title=data.title, tags=tags)
    except library.TooManyLinksError:
        raise Problem(422, library.TOO_MANY) from None
    return _answer(item, 201 if is_new else 200, Location=url_for("links_api.show", id=item.id))


@blueprint.get(LINK)
@no_store
@scope_required(READ)
@no_rate_limit("one row by its key")
@document_response(200, LinkAnswer, headers=ENTITY_TAG)
@document_response(304)
@document_problem(412, DETAILS[412])
async def show(id: int) -> Response:
    """Return a link."""
    async with database.read() as session:
        item = await library.get(session, caller().id, id)
    if item is None:
        raise Problem(404, NO_SUCH_LINK)
    return preconditions.conditional(_answer(item))


@blueprint.patch(LINK)
@no_store
@scope_required(WRITE)
@rate_limit(CHANGES, by_caller)
@not_audited("concerns no account's security")
@validate_json(LinkChange)
@document_response(200, LinkAnswer, headers=ENTITY_TAG)
@document_problem(412, DETAILS[412])
async def change(id: int, data: LinkChange) -> Response:
    """Change a link; with `If-Match` only if it is at one of these versions."""
    values = data.model_dump(exclude_unset=True)
    if "tags" in values:
        values["tags"] = sorted(set(values["tags"]))
    async with database.write() as session:
        await _require_version(session, id)
        if values:
            item = await library.change(session, caller().id, id, **values)
        else:
            item = await library.get(session, caller().id, id)
    if item is None:
        raise Problem(404, NO_SUCH_LINK)
    return _answer(item)


@blueprint.delete(LINK)
@no_store
@scope_required(WRITE)
@rate_limit(CHANGES, by_caller)
@not_audited("concerns no account's security")
@document_response(204)
@document_problem(412, DETAILS[412])
async def remove(id: int) -> Response:
    """Delete a link; with `If-Match` only if it is at one of these versions."""
    async with database.write() as session:
        await _require_version(session, id)
        gone = await library.remove(session, caller().id, id)
    if not gone:
        raise Problem(404, NO_SUCH_LINK)
    return Response(status=204)


@blueprint.get("/tags")
@no_store
@scope_required(READ)
@no_rate_limit("one page by an index")
@validate_query(TagsQuery)
@document_response(200, TagsAnswer, headers=NEXT)
async def tags(query: TagsQuery) -> Response:
    """List the tags that links have."""
    limit = query.limit
    async with database.read() as session:
        found = await library.tags(session, caller().id, after=query.after, limit=limit + 1)
    link = _next({"after": found[limit - 1]} if len(found) > limit else {})
    return _page(TagsAnswer(items=found[:limit], next=link), link)


def _answer(item: Item, status: int = 200, **headers: str) -> Response:
    return json_response(
        LinkAnswer.model_validate(item), status, headers={"ETag": _etag(item), **headers}
    )


def _etag(item: Item) -> str:
    return f'"{item.version}"'


async def _require_version(session: AsyncSession, link_id: int) -> None:
    """Evaluate the request's preconditions, and keep the link at its version until the commit.

    Without preconditions there is no query.

    Raises:
        PreconditionFailed: the link is at another version.
        BadRequest: a precondition is malformed.
    """
    if preconditions.present():
        item = await library.get(session, caller().id, link_id, lock=True)
        if item is not None:
            preconditions.require(str(item.version))


def _page(page: BaseModel, link: str | None) -> Response:
    return json_response(page, headers={"Link": f'<{link}>; rel="next"'} if link else {})


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
