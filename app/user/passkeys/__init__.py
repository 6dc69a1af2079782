"""Passkeys (WebAuthn): log in without a password, or confirm a password or a change."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Let users add passkeys and log in with them, unless the site cannot have passkeys."""
    from sqlalchemy.ext.asyncio import AsyncSession

    from app.site import (
        AdminUserAction,
        PersonalDataSection,
        ProofMethod,
        SecondFactor,
        get_site,
    )
    from app.user import commands as user_commands
    from app.user.models import User
    from app.user.passkeys import (
        admin_views,
        ceremonies,
        challenges,
        commands,
        emails,
        login_views,
        proofs,
        queries,
        views,
    )
    from app.user.passkeys.relying_party import relying_party_of

    upsun = app.extensions["quart_upsun"]
    upsun.jobs.register(challenges.CLEANUP)
    site = get_site(app)
    site.personal_data.append(
        PersonalDataSection(
            "passkeys", queries.export_passkeys, ("passkeys",), is_account_in_use=False
        )
    )
    site.tables_not_exported["passkey_owners"] = "a random number, and a setting"

    party = relying_party_of(upsun.settings.origin) if upsun.settings.passkeys else None
    if party is None:
        return

    async def has_passkey(session: AsyncSession, user_id: int) -> bool:
        return await queries.has_passkey(session, user_id, party.id)

    async def is_required(session: AsyncSession, user_id: int) -> bool:
        return await queries.is_required(session, user_id, party.id)

    async def can_prove(session: AsyncSession, user: User) -> bool:
        return await has_passkey(session, user.id)

    app.extensions["passkeys"] = party
    app.jinja_env.globals["passkey_origin"] = party.origin
    app.jinja_env.globals["passkey_lifetime"] = ceremonies.TIMEOUT_MILLISECONDS
    app.config["PASSKEY_COOKIE_NAME"] = f"{upsun.settings.cookie_prefix}passkey"
    for module in (views, login_views, admin_views):
        app.register_blueprint(module.blueprint)
    user_commands.group.add_command(commands.remove_passkeys)
    upsun.mail.composers.update(emails.COMPOSERS)
    site.account_cards.append("passkeys/account_card.html")
    site.login_cards.append("passkeys/login.html")
    site.has_other_login.append(has_passkey)
    site.admin_user_actions.append(AdminUserAction("passkeys/admin_action.html", has_passkey))
    site.second_factors.append(
        SecondFactor(
            login_views.FACTOR, "Use a passkey", "passkey_login.second_factor", is_required
        )
    )
    site.proof_methods.append(
        ProofMethod(
            login_views.FACTOR,
            can_prove,
            "passkeys/proof.html",
            verify=proofs.verify_proof,
        )
    )
