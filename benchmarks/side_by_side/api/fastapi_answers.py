"""Response models and authorization of both FastAPI applications."""

from datetime import datetime
from typing import Annotated
from urllib.parse import urlencode

from fastapi import HTTPException, Query, Request, Security
from fastapi.security import APIKeyHeader
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row

Key = Annotated[str, Security(APIKeyHeader(name="X-API-Key"))]
Limit = Annotated[int, Query(ge=1, le=100)]


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
    model_config = ConfigDict(from_attributes=True)

    items: list[LinkAnswer]
    next: str | None


def authorized(found: Row[int, str, list[str]] | None) -> int:
    """Return the user id of the token's owner.

    Raises:
        HTTPException: the token is invalid, or does not have the scope `links:read`.
    """
    if found is None:
        raise HTTPException(401)
    if "links:read" not in found.scopes:
        raise HTTPException(403)
    user_id: int = found.id
    return user_id


def following(request: Request, limit: int, last: int) -> str:
    """Return the URL of the next page."""
    return f"{request.url.path}?{urlencode({'limit': limit, 'before': last})}"
