"""The JSON API of the reading list: `/api/v1/links` and `/api/v1/tags`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from quart import Blueprint, Response, url_for
from quart_schema import tag_blueprint
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import database
from app.links import queries, search
from app.links.models import DESCRIPTION_LENGTH, MAX_TAGS, TAG_LENGTH, TITLE_LENGTH, URL_LENGTH
from app.links.queries import LinkItem
from app.links.selection import SEARCH_LIMIT, STATES
from app.links.tags import parse_tag
from quart_upsun import urls
from quart_upsun.api.auth import by_caller, current_caller, scope_required
from quart_upsun.api.fields import Id, clean_validator, omitted
from quart_upsun.api.idempotency import idempotent
from quart_upsun.api.pagination import NEXT_LINK_HEADER, next_page_url, page_response
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
from quart_upsun.http import preconditions
from quart_upsun.policy import no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import Limit, is_search, rate_limit
from quart_upsun.text import clean, clean_lines

blueprint = Blueprint("links_api", __name__, url_prefix="/api/v1")
tag_blueprint(blueprint, ["Links"])

READ = Scope("links:read", "Read your links and tags")
WRITE = Scope("links:write", "Create, update and delete links")

CHANGE_LIMIT = Limit("links_api", count=300, seconds=60)

LINK_PATH = "/links/<id:id>"
ETAG_HEADER = {"ETag": "The version of the link, for use in `If-Match`"}
LINK_NOT_FOUND = "Link not found."

Tag = Annotated[Text, Field(max_length=TAG_LENGTH), AfterValidator(parse_tag)]
Tags = Annotated[list[Tag], Field(max_length=MAX_TAGS)]
Title = Annotated[Text, Field(max_length=TITLE_LENGTH), clean_validator(clean, TITLE_LENGTH)]
Description = Annotated[
    Text, Field(max_length=DESCRIPTION_LENGTH), clean_validator(clean_lines, DESCRIPTION_LENGTH)
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
        description="When its page was last fetched; null before the first fetch"
    )
    fetch_error: str | None = Field(description="Why the last fetch failed; null if it succeeded")


class LinksAnswer(BaseModel):
    """A page of links, newest first; search results are sorted by relevance."""

    items: list[LinkAnswer]
    next: str | None = Field(description="The URL of the next page; null on the last page")


class NewLink(BaseModel):
    """A link to save."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[Text, Field(max_length=URL_LENGTH)]
    title: Title = ""
    tags: Tags = []


class LinkChange(BaseModel):
    """The fields to update. Omitted fields stay unchanged; `null` is not allowed."""

    model_config = ConfigDict(extra="forbid")

    title: Title = Field(
        default_factory=omitted, description="An empty title is replaced by the title of the page"
    )
    description: Description = Field(default_factory=omitted)
    tags: Tags = Field(default_factory=omitted, description="Replaces all tags")
    archived: bool = Field(default_factory=omitted)


class TagsAnswer(BaseModel):
    """A page of the account's tags, in alphabetical order."""

    items: list[str]
    next: str | None = Field(description="The URL of the next page; null on the last page")


class TagsQuery(BaseModel):
    """Pagination of the tags."""

    limit: int = Field(200, ge=1, le=200, description="Maximum number of tags")
    after: Annotated[Text, Field(max_length=TAG_LENGTH)] = Field(
        "", description="Return tags after this one; use the value from `next`"
    )


class LinksQuery(BaseModel):
    """Filters, search and pagination of the links."""

    limit: int = Field(20, ge=1, le=100, description="Maximum number of links")
    state: Literal["unread", "archived", "all"] = Field("all", description="Filter by state")
    tag: Tag | None = Field(None, description="Filter by tag")
    q: Annotated[Text, Field(max_length=200)] | None = Field(
        None, description="Search terms; with a search, `state` and `tag` are ignored"
    )
    before: Id | None = Field(None, description="Return links saved before the link with this id")
    after: Annotated[Text, Field(max_length=100)] | None = Field(
        None, description="Cursor of a search; use the value from `next`"
    )


@blueprint.get("/links")
@no_store
@scope_required(READ)
@rate_limit(SEARCH_LIMIT, by_caller, when=is_search)
@no_rate_limit("one page by an index")
@validate_query(LinksQuery)
@document_response(200, LinksAnswer, headers=NEXT_LINK_HEADER)
async def index(query: LinksQuery) -> Response:
    """List or search links."""
    limit = query.limit
    if query.q is None:
        async with database.direct() as connection:
            items = await queries.list_links(
                connection,
                current_caller().id,
                archived=STATES[query.state],
                tag=query.tag,
                before=query.before,
                limit=limit + 1,  # to know whether there is a next page
            )
        next_parameters = {"before": str(items[limit - 1].id)} if len(items) > limit else {}
    else:
        async with database.read() as session:
            try:
                found = await search.search(
                    session, current_caller().id, query.q, after=query.after, limit=limit + 1
                )
            except ValueError:
                raise Problem(422, "`after` is not a cursor from `next`.") from None
        items = [each.item for each in found]
        next_parameters = {"after": found[limit - 1].cursor} if len(found) > limit else {}
    link = next_page_url(next_parameters)
    return page_response(LinksAnswer.model_validate({"items": items[:limit], "next": link}), link)


@blueprint.post("/links")
@no_store
@scope_required(WRITE)
@rate_limit(CHANGE_LIMIT, by_caller)
@not_audited("not security relevant")
@validate_json(NewLink)
@document_response(201, LinkAnswer, headers={"Location": "The URL of the link", **ETAG_HEADER})
@document_response(200, LinkAnswer, headers={"Location": "The URL of the link", **ETAG_HEADER})
@idempotent
async def save(data: NewLink, session: AsyncSession) -> Response:
    """Save a link.

    A link that is already saved stays unchanged and is returned with status 200.
    """
    try:
        url = urls.normalize_url(data.url)
    except ValueError as error:
        raise _validation_problem(str(error), "#/url") from None
    tags = sorted(set(data.tags))
    try:
        item, is_new = await queries.save_link(
            session, current_caller().id, url, title=data.title, tags=tags
        )
    except queries.TooManyLinksError:
        raise Problem(422, queries.TOO_MANY_LINKS) from None
    return _link_response(
        item, 201 if is_new else 200, Location=url_for("links_api.show", id=item.id)
    )


@blueprint.get(LINK_PATH)
@no_store
@scope_required(READ)
@no_rate_limit("one row by its key")
@document_response(200, LinkAnswer, headers=ETAG_HEADER)
@document_response(304)
@document_problem(412, DETAILS[412])
async def show(id: int) -> Response:
    """Return a link."""
    async with database.read() as session:
        item = await queries.get_link(session, current_caller().id, id)
    if item is None:
        raise Problem(404, LINK_NOT_FOUND)
    return preconditions.make_conditional(_link_response(item))


@blueprint.patch(LINK_PATH)
@no_store
@scope_required(WRITE)
@rate_limit(CHANGE_LIMIT, by_caller)
@not_audited("not security relevant")
@validate_json(LinkChange)
@document_response(200, LinkAnswer, headers=ETAG_HEADER)
@document_problem(412, DETAILS[412])
async def change(id: int, data: LinkChange) -> Response:
    """Update a link.

    With `If-Match`, update it only if its version matches.
    """
    values = data.model_dump(exclude_unset=True)
    if "tags" in values:
        values["tags"] = sorted(set(values["tags"]))
    async with database.write() as session:
        await _require_version(session, id)
        if values:
            item = await queries.update_link(session, current_caller().id, id, **values)
        else:
            item = await queries.get_link(session, current_caller().id, id)
    if item is None:
        raise Problem(404, LINK_NOT_FOUND)
    return _link_response(item)


@blueprint.delete(LINK_PATH)
@no_store
@scope_required(WRITE)
@rate_limit(CHANGE_LIMIT, by_caller)
@not_audited("not security relevant")
@document_response(204)
@document_problem(412, DETAILS[412])
async def remove(id: int) -> Response:
    """Delete a link.

    With `If-Match`, delete it only if its version matches.
    """
    async with database.write() as session:
        await _require_version(session, id)
        is_deleted = await queries.delete_link(session, current_caller().id, id)
    if not is_deleted:
        raise Problem(404, LINK_NOT_FOUND)
    return Response(status=204)


@blueprint.get("/tags")
@no_store
@scope_required(READ)
@no_rate_limit("one page by an index")
@validate_query(TagsQuery)
@document_response(200, TagsAnswer, headers=NEXT_LINK_HEADER)
async def tags(query: TagsQuery) -> Response:
    """List the tags of your links."""
    limit = query.limit
    async with database.read() as session:
        found = await queries.list_tags(
            session, current_caller().id, after=query.after, limit=limit + 1
        )
    link = next_page_url({"after": found[limit - 1]} if len(found) > limit else {})
    return page_response(TagsAnswer(items=found[:limit], next=link), link)


def _link_response(item: LinkItem, status: int = 200, **headers: str) -> Response:
    return json_response(
        LinkAnswer.model_validate(item), status, headers={"ETag": _etag(item), **headers}
    )


def _etag(item: LinkItem) -> str:
    return f'"{item.version}"'


async def _require_version(session: AsyncSession, link_id: int) -> None:
    """Evaluate the request's preconditions, and lock the link until the commit.

    Runs no query if the request has no preconditions.

    Raises:
        PreconditionFailed: the link has another version.
        BadRequest: a precondition is malformed.
    """
    if preconditions.has_preconditions():
        item = await queries.get_link(session, current_caller().id, link_id, lock=True)
        if item is not None:
            preconditions.require_preconditions(str(item.version))


def _validation_problem(detail: str, pointer: str) -> Problem:
    return Problem(422, DETAILS[422], errors=[{"detail": detail, "pointer": pointer}])
