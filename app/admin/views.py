"""What administrators see: users, the audit trail, jobs, and the mails that were not sent."""

from quart import Blueprint, abort, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database, site, upsun
from app.user import accounts
from app.user.audit_trail import Event
from app.user.login import admin_required, member
from app.user.models import User
from quart_upsun.database import LARGEST_ID
from quart_upsun.jobs import failed
from quart_upsun.logging import get_logger
from quart_upsun.mail import outbox, rendering
from quart_upsun.policy import audited, no_rate_limit, no_store, not_audited
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, rate_limit, searching

log = get_logger(__name__)

blueprint = Blueprint("admin", __name__, url_prefix="/admin")

CHANGES = Limit("admin", 60, 60)
# Letters that nobody's name begins with are looked for in every row.
SEARCHES = Limit("admin-search", 60, 60)
PAGE = 50


@blueprint.get("/")
@no_store
@admin_required
@rate_limit(SEARCHES, by_account, when=searching)
@no_rate_limit("one page by an index, for administrators")
async def users() -> ResponseReturnValue:
    """List users, newest first, by the first letters of name or address if some are given."""
    beginning = request.args.get("q", "").replace("\x00", "").strip()
    async with database.read() as session:
        found = await accounts.search(session, beginning=beginning, before=before(), limit=PAGE + 1)
    return await render_template(
        "admin/users.html", users=found[:PAGE], more=found[PAGE:], beginning=beginning
    )


@blueprint.get("/users/<id:user_id>/")
@no_store
@admin_required
@no_rate_limit("one page by an index, for administrators")
async def user(user_id: int) -> ResponseReturnValue:
    """Show one user, and what happened to the account."""
    found = await existing(user_id)
    async with database.read() as session:
        events = await audit.latest(session, user_id=user_id, before=before(), limit=PAGE + 1)
    return await render_template(
        "admin/user.html", user=found, events=events[:PAGE], more=events[PAGE:]
    )


@blueprint.post("/users/<id:user_id>/deactivate/")
@no_store
@admin_required
@rate_limit(CHANGES, by_account)
@audited(Event.DEACTIVATED, Event.TOKEN_DELETED)
async def deactivate(user_id: int) -> ResponseReturnValue:
    """Deactivate a user, end the sessions and revoke the tokens.

    Not one's own account, or soon there would be no administrator.
    """
    if user_id == member().id:
        await flash("You cannot deactivate yourself.", "warning")
    else:
        await existing(user_id)
        async with database.write() as session:
            await accounts.set_active(session, user_id, active=False, actor_id=member().id)
            await site.revoke_access(session, user_id, actor_id=member().id)
        await flash(
            "The account is deactivated, its sessions are ended and its access tokens revoked.",
            "success",
        )
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.post("/users/<id:user_id>/reactivate/")
@no_store
@admin_required
@rate_limit(CHANGES, by_account)
@audited(Event.REACTIVATED)
async def reactivate(user_id: int) -> ResponseReturnValue:
    await existing(user_id)
    async with database.write() as session:
        await accounts.set_active(session, user_id, active=True, actor_id=member().id)
    await flash("The account is active again.", "success")
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.post("/users/<id:user_id>/end-sessions/")
@no_store
@admin_required
@rate_limit(CHANGES, by_account)
@audited(Event.SESSIONS_ENDED, Event.TOKEN_DELETED)
async def end_sessions(user_id: int) -> ResponseReturnValue:
    """End all sessions and revoke all tokens, which an intruder may have created."""
    await existing(user_id)
    async with database.write() as session:
        await accounts.end_sessions(session, user_id, actor_id=member().id)
        await site.revoke_access(session, user_id, actor_id=member().id)
    await flash("The user is signed out everywhere, and the access tokens are revoked.", "success")
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.get("/audit/")
@no_store
@admin_required
@no_rate_limit("one page by an index, for administrators")
async def trail() -> ResponseReturnValue:
    """Show what happened to all accounts, newest first."""
    async with database.read() as session:
        events = await audit.latest(session, before=before(), limit=PAGE + 1)
    return await render_template("admin/audit.html", events=events[:PAGE], more=events[PAGE:])


@blueprint.get("/jobs/")
@no_store
@admin_required
@no_rate_limit("few rows, because finished jobs are not kept")
async def jobs() -> ResponseReturnValue:
    """Count the jobs, and show those that were given up.

    Of what they are about only what a task names: the rest may tell about people.
    """
    async with database.read() as session:
        counts = await failed.counts(session)
        given_up = await failed.latest(session, before=before(), limit=PAGE + 1)
    tasks = upsun.jobs.tasks
    shown = {name: tasks[name].shown for name in tasks}
    return await render_template(
        "admin/jobs.html",
        counts=counts,
        states=failed.STATES.values(),
        jobs=given_up[:PAGE],
        more=given_up[PAGE:],
        shown=shown,
    )


@blueprint.post("/jobs/<id:job_id>/again/")
@no_store
@admin_required
@rate_limit(CHANGES, by_account)
@not_audited("concerns no account")
async def do_again(job_id: int) -> ResponseReturnValue:
    """Let a job that was given up begin anew."""
    try:
        async with database.write() as session:
            task = await failed.try_again(session, job_id) or abort(404)
    except failed.DuplicateJobError:
        await flash("This is being done already, as another job. You can remove this one.", "info")
    else:
        log.info("job begun anew", task=task, job=job_id, by=member().id)
        await flash("The job is tried again.", "success")
    return redirect(url_for("admin.jobs"), 303)


@blueprint.post("/jobs/<id:job_id>/remove/")
@no_store
@admin_required
@rate_limit(CHANGES, by_account)
@not_audited("concerns no account")
async def remove_job(job_id: int) -> ResponseReturnValue:
    """Forget a job that was given up."""
    async with database.write() as session:
        task = await failed.remove(session, job_id) or abort(404)
    log.info("job removed", task=task, job=job_id, by=member().id)
    await flash("The job is removed.", "success")
    return redirect(url_for("admin.jobs"), 303)


@blueprint.get("/mail/")
@no_store
@admin_required
@no_rate_limit("one page by an index, for administrators")
async def mail() -> ResponseReturnValue:
    """Show the mails that are kept instead of sent: in a preview all of them."""
    async with database.read() as session:
        mails = await outbox.kept(session, before=before(), limit=PAGE + 1)
    texts = {mail.id: rendering.read(mail.message).text for mail in mails}
    return await render_template(
        "admin/mail.html", mails=mails[:PAGE], more=mails[PAGE:], texts=texts
    )


def before() -> int | None:
    """Return the id that the page asked for begins below; None for the first page."""
    number = request.args.get("before", "", type=str)
    is_id = len(number) < 20 and number.isascii() and number.isdecimal()
    return min(int(number), LARGEST_ID) if is_id else None


async def existing(user_id: int) -> User:
    """Return the user, or answer 404."""
    async with database.read() as session:
        return await accounts.by_id(session, user_id) or abort(404)
