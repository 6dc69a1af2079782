"""Accounts: registration, login, the account page, and related emails and commands."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Register the views, emails, jobs and commands, and load the user of each request."""
    from app.site import MenuEntry, get_site
    from app.user import (
        account_page,
        api,
        commands,
        emails,
        login,
        recovery,
        unconfirmed_accounts,
        views,
    )

    upsun = app.extensions["quart_upsun"]
    login.init_app(app)
    for module in (views, recovery, account_page, api):
        app.register_blueprint(module.blueprint)
    upsun.mail.composers.update(emails.COMPOSERS)
    upsun.jobs.register(unconfirmed_accounts.DELETE_UNCONFIRMED_ACCOUNTS)
    app.cli.add_command(commands.group)
    site = get_site(app)
    site.menu.append(MenuEntry("Members", "user.members", "users", position=40))
    site.tables_not_exported |= {
        "audit_events": "exported with the account",
        "idempotent_answers": "cached API responses, deleted after a day",
        "live_events": "live updates of open pages, deleted after a day",
    }
