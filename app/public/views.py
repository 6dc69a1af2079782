"""Public pages: home and about."""

from quart import Blueprint, render_template

from quart_upsun.policy import cache_public, no_rate_limit, public

blueprint = Blueprint("public", __name__)


@blueprint.get("/")
@cache_public(300)
@public
@no_rate_limit("no query, and cached by the router")
async def home() -> str:
    return await render_template("public/home.html")


@blueprint.get("/about/")
@cache_public(300)
@public
@no_rate_limit("no query, and cached by the router")
async def about() -> str:
    return await render_template("public/about.html")
