"""Administration pages: users, audit trail, jobs, and stored emails."""

from quart import Blueprint, abort, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database, site, upsun
from app.user import accounts
from app.user.audit_trail import Event
from app.user.login import admin_required, logged_in_user
from app.user.models import User
from app.user.proofs import proof_required
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
# A prefix that matches no user makes PostgreSQL read every row.
SEARCH_LIMIT = Limit("admin-search", 60, 60)
PAGE_SIZE = 50


@blueprint.get("/")
@no_store
@admin_required
@rate_limit(SEARCH_LIMIT, by_account, when=is_search)
@no_rate_limit("reads one page with an index, administrators only")
async def users() -> ResponseReturnValue:
    """List users, newest first, optionally by a prefix of username or email address."""
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
@no_rate_limit("reads one page with an index, administrators only")
async def user(user_id: int) -> ResponseReturnValue:
    """Show a user and their audit events."""
    found = await get_user_or_404(user_id)
    async with database.read() as session:
        events = await audit.list_events(
            session, user_id=user_id, before=before_id(), limit=PAGE_SIZE + 1
        )
        actions = [
            action.template
            for action in site.admin_user_actions
            if await action.is_available(session, user_id)
        ]
    return await render_template(
        "admin/user.html",
        user=found,
        actions=actions,
        events=events[:PAGE_SIZE],
        has_more=len(events) > PAGE_SIZE,
    )


@blueprint.post("/users/<id:user_id>/deactivate/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.DEACTIVATED, Event.TOKEN_DELETED)
async def deactivate(user_id: int) -> ResponseReturnValue:
    """Deactivate a user, end their sessions and revoke their access tokens.

    Administrators cannot deactivate themselves, so that at least one remains active.
    """
    if user_id == logged_in_user().id:
        await flash("You cannot deactivate your own account.", "warning")
    else:
        await get_user_or_404(user_id)
        async with database.write() as session:
            await accounts.deactivate_user(session, user_id, actor_id=logged_in_user().id)
            await site.revoke_access(session, user_id, actor_id=logged_in_user().id)
        await flash(
            "The user was deactivated, all sessions were ended and all access tokens revoked.",
            "success",
        )
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.post("/users/<id:user_id>/reactivate/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.REACTIVATED)
async def reactivate(user_id: int) -> ResponseReturnValue:
    await get_user_or_404(user_id)
    async with database.write() as session:
        await accounts.reactivate_user(session, user_id, actor_id=logged_in_user().id)
    await flash("The user was reactivated.", "success")
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.post("/users/<id:user_id>/end-sessions/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.SESSIONS_ENDED, Event.TOKEN_DELETED)
async def end_sessions(user_id: int) -> ResponseReturnValue:
    """End all sessions of a user and revoke all tokens, which an attacker may have created."""
    await get_user_or_404(user_id)
    async with database.write() as session:
        await accounts.end_sessions(session, user_id, actor_id=logged_in_user().id)
        await site.revoke_access(session, user_id, actor_id=logged_in_user().id)
    await flash(
        "The user was logged out everywhere, and all access tokens were revoked.", "success"
    )
    return redirect(url_for("admin.user", user_id=user_id), 303)


@blueprint.get("/audit/")
@no_store
@admin_required
@no_rate_limit("reads one page with an index, administrators only")
async def trail() -> ResponseReturnValue:
    """List the audit events of all accounts, newest first."""
    async with database.read() as session:
        events = await audit.list_events(session, before=before_id(), limit=PAGE_SIZE + 1)
    return await render_template(
        "admin/audit.html", events=events[:PAGE_SIZE], has_more=len(events) > PAGE_SIZE
    )


@blueprint.get("/jobs/")
@no_store
@admin_required
@no_rate_limit("reads few rows, because finished jobs are deleted")
async def jobs() -> ResponseReturnValue:
    """Show job counts and failed jobs.

    Of a job's data, only the `logged_fields` of its task are shown: the rest may be personal data.
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


@blueprint.post("/jobs/<id:job_id>/again/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("does not concern an account")
async def retry_job(job_id: int) -> ResponseReturnValue:
    """Retry a failed job."""
    try:
        async with database.write() as session:
            task = await failed.retry_job(session, job_id) or abort(404)
    except failed.DuplicateJobError:
        await flash("An identical job is already in the queue. You can delete this one.", "info")
    else:
        log.info("job retried", task=task, job_id=job_id, user_id=logged_in_user().id)
        await flash("The job was queued again.", "success")
    return redirect(url_for("admin.jobs"), 303)


@blueprint.post("/jobs/<id:job_id>/remove/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("does not concern an account")
async def remove_job(job_id: int) -> ResponseReturnValue:
    """Delete a failed job."""
    async with database.write() as session:
        task = await failed.delete_failed_job(session, job_id) or abort(404)
    log.info("failed job deleted", task=task, job_id=job_id, user_id=logged_in_user().id)
    await flash("The job was deleted.", "success")
    return redirect(url_for("admin.jobs"), 303)


@blueprint.get("/mail/")
@no_store
@admin_required
@no_rate_limit("reads one page with an index, administrators only")
async def mail() -> ResponseReturnValue:
    """List emails that were stored instead of sent, as in previews."""
    async with database.read() as session:
        mails = await outbox.list_kept_mails(session, before=before_id(), limit=PAGE_SIZE + 1)
    texts = {mail.id: rendering.parse_message(mail.message).text for mail in mails}
    return await render_template(
        "admin/mail.html", mails=mails[:PAGE_SIZE], has_more=len(mails) > PAGE_SIZE, texts=texts
    )


def before_id() -> int | None:
    """Return the pagination cursor, an id; None for the first page."""
    number = request.args.get("before", "", type=str)
    is_id = len(number) < 20 and number.isascii() and number.isdecimal()
    return min(int(number), MAX_ID) if is_id else None


async def get_user_or_404(user_id: int) -> User:
    """Return the user, or abort with a 404."""
    async with database.read(exact=True) as session:
        return await accounts.get_user(session, user_id) or abort(404)
