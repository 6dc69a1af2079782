"""Accounts: registration, login, the account page, and related emails and commands."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register the views, emails, jobs and commands, and load the user of each request."""
    from app.site import MenuEntry, PersonalDataSection, get_site
    from app.user import (
        account_page,
        commands,
        emails,
        login,
        proofs,
        recovery,
        sessions,
        unconfirmed_accounts,
        views,
    )

    upsun = app.extensions["quart_upsun"]
    login.init_app(app)
    for module in (views, recovery, account_page, proofs):
        app.register_blueprint(module.blueprint)
    upsun.mail.composers.update(emails.COMPOSERS)
    upsun.jobs.register(
        unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS, sessions.DELETE_ENDED_SESSIONS
    )
    app.cli.add_command(commands.group)
    site = get_site(app)
    site.menu.append(MenuEntry("Members", "user.members", "users", position=40))
    site.proof_methods.append(proofs.PASSWORD)
    site.personal_data.append(
        PersonalDataSection(
            "sessions", sessions.export_sessions, ("user_sessions",), is_account_in_use=False
        )
    )
    site.tables_not_exported |= {
        "audit_events": "exported with the account",
        "idempotent_answers": "cached API responses, deleted after a day",
        "live_events": "live updates of open pages, deleted after a day",
        "log_positions": "positions in the database's log, used for 15 seconds",
    }
