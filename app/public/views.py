"""The pages everybody may see."""

from quart import Blueprint, render_template

from app.http import shared
from app.security.limits import unlimited
from app.user.login import everybody

blueprint = Blueprint("public", __name__)


@blueprint.get("/")
@shared(300)
@everybody
@unlimited("no query, and the router keeps it")
async def home() -> str:
    return await render_template("public/home.html")


@blueprint.get("/about/")
@shared(300)
@everybody
@unlimited("no query, and the router keeps it")
async def about() -> str:
    return await render_template("public/about.html")
