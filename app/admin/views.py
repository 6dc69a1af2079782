"""What administrators see: users, the audit trail, jobs, and the mails that were not sent."""

from quart import Blueprint, abort, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database, site, upsun
from app.user import accounts
from app.user.audit_trail import Event
from app.user.login import admin_required, logged_in_user
from app.user.models import User
from quart_upsun.database import MAX_ID
from quart_upsun.jobs import failed
from quart_upsun.logging import get_logger
from quart_upsun.mail import outbox, rendering
from quart_upsun.policy import audited, no_rate_limit, no_store, not_audited
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, is_search, rate_limit

log = get_logger(__name__)

blueprint = Blueprint("admin", __name__, url_prefix="/admin")

CHANGE_LIMIT = Limit("admin", 60, 60)
# Letters that nobody's name begins with are looked for in every row.
SEARCH_LIMIT = Limit("admin-search", 60, 60)
PAGE_SIZE = 50


@blueprint.get("/")
@no_store
@admin_required
@rate_limit(SEARCH_LIMIT, by_account, when=is_search)
@no_rate_limit("one page by an index, for administrators")
async def users() -> ResponseReturnValue:
    """List users, newest first, by the first letters of name or address if some are given."""
    prefix = request.args.get("q", "").replace("\x00", "").strip()
    async with database.read() as session:
        found = await accounts.search_users(
            session, prefix=prefix, before=before_id(), limit=PAGE_SIZE + 1
        )
    return await render_template(
        "admin/users.html", users=found[:PAGE_SIZE], has_more=len(found) > PAGE_SIZE, prefix=prefix
    )


@blueprint.get("/users/<id:user_id>/")
@no_store
@admin_required
@no_rate_limit("one page by an index, for administrators")
async def user(user_id: int) -> ResponseReturnValue:
    """Show one user, and what happened to the account."""
    found = await get_user_or_404(user_id)
    async with database.read() as session:
        events = await audit.list_events(
            session, user_id=user_id, before=before_id(), limit=PAGE_SIZE + 1
        )
    return await render_template(
        "admin/user.html", user=found, events=events[:PAGE_SIZE], has_more=len(events) > PAGE_SIZE
    )


@blueprint.post("/users/<id:user_id>/deactivate/")
@no_store
@admin_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.DEACTIVATED, Event.TOKEN_DELETED)
async def deactivate(user_id: int) -> ResponseReturnValue:
    """Deactivate a user, end the sessions and revoke the tokens.

    Not one's own account, or soon there would be no administrator.
    """
    if user_id == logged_in_user().id:
        await flash("You cannot deactivate yourself.", "warning")
    else:
        await get_user_or_404(user_id)
        async with database.write() as session:
            await accounts.deactivate_user(session, user_id, actor_id=logged_in_user().id)
            await site.revoke_access(session, user_id, actor_id=logged_in_user().id)
        await flash(
            "The account is deactivated, its sessions are ended and its access tokens revoked.",
            "success",
        )
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.post("/users/<id:user_id>/reactivate/")
@no_store
@admin_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.REACTIVATED)
async def reactivate(user_id: int) -> ResponseReturnValue:
    await get_user_or_404(user_id)
    async with database.write() as session:
        await accounts.reactivate_user(session, user_id, actor_id=logged_in_user().id)
    await flash("The account is active again.", "success")
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.post("/users/<id:user_id>/end-sessions/")
@no_store
@admin_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.SESSIONS_ENDED, Event.TOKEN_DELETED)
async def end_sessions(user_id: int) -> ResponseReturnValue:
    """End all sessions and revoke all tokens, which an intruder may have created."""
    await get_user_or_404(user_id)
    async with database.write() as session:
        await accounts.end_sessions(session, user_id, actor_id=logged_in_user().id)
        await site.revoke_access(session, user_id, actor_id=logged_in_user().id)
    await flash("The user is signed out everywhere, and the access tokens are revoked.", "success")
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.get("/audit/")
@no_store
@admin_required
@no_rate_limit("one page by an index, for administrators")
async def trail() -> ResponseReturnValue:
    """Show what happened to all accounts, newest first."""
    async with database.read() as session:
        events = await audit.list_events(session, before=before_id(), limit=PAGE_SIZE + 1)
    return await render_template(
        "admin/audit.html", events=events[:PAGE_SIZE], has_more=len(events) > PAGE_SIZE
    )


@blueprint.get("/jobs/")
@no_store
@admin_required
@no_rate_limit("few rows, because finished jobs are not kept")
async def jobs() -> ResponseReturnValue:
    """Count the jobs, and show those that were given up.

    Of what they are about only what a task names: the rest may tell about people.
    """
    async with database.read() as session:
        counts = await failed.count_jobs(session)
        failed_jobs = await failed.list_failed_jobs(
            session, before=before_id(), limit=PAGE_SIZE + 1
        )
    tasks = upsun.jobs.tasks
    shown_fields = {name: tasks[name].logged_fields for name in tasks}
    return await render_template(
        "admin/jobs.html",
        counts=counts,
        states=failed.STATES.values(),
        jobs=failed_jobs[:PAGE_SIZE],
        has_more=len(failed_jobs) > PAGE_SIZE,
        shown_fields=shown_fields,
    )


@blueprint.post("/jobs/<id:job_id>/again/", endpoint="do_again")
@no_store
@admin_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("concerns no account")
async def retry_job(job_id: int) -> ResponseReturnValue:
    """Let a job that was given up begin anew."""
    try:
        async with database.write() as session:
            task = await failed.retry_job(session, job_id) or abort(404)
    except failed.DuplicateJobError:
        await flash("This is being done already, as another job. You can remove this one.", "info")
    else:
        log.info("job retried", task=task, job_id=job_id, user_id=logged_in_user().id)
        await flash("The job is tried again.", "success")
    return redirect(url_for("admin.jobs"), 303)


@blueprint.post("/jobs/<id:job_id>/remove/")
@no_store
@admin_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("concerns no account")
async def remove_job(job_id: int) -> ResponseReturnValue:
    """Forget a job that was given up."""
    async with database.write() as session:
        task = await failed.delete_failed_job(session, job_id) or abort(404)
    log.info("failed job deleted", task=task, job_id=job_id, user_id=logged_in_user().id)
    await flash("The job is removed.", "success")
    return redirect(url_for("admin.jobs"), 303)


@blueprint.get("/mail/")
@no_store
@admin_required
@no_rate_limit("one page by an index, for administrators")
async def mail() -> ResponseReturnValue:
    """Show the mails that are kept instead of sent: in a preview all of them."""
    async with database.read() as session:
        mails = await outbox.list_kept_mails(session, before=before_id(), limit=PAGE_SIZE + 1)
    texts = {mail.id: rendering.parse_message(mail.message).text for mail in mails}
    return await render_template(
        "admin/mail.html", mails=mails[:PAGE_SIZE], has_more=len(mails) > PAGE_SIZE, texts=texts
    )


def before_id() -> int | None:
    """Return the id that the page asked for begins below; None for the first page."""
    number = request.args.get("before", "", type=str)
    is_id = len(number) < 20 and number.isascii() and number.isdecimal()
    return min(int(number), MAX_ID) if is_id else None


async def get_user_or_404(user_id: int) -> User:
    """Return the user, or answer 404."""
    async with database.read() as session:
        return await accounts.get_user(session, user_id) or abort(404)
