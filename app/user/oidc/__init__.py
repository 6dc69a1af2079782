"""Login with another provider: OpenID Connect, and GitHub."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Offer the providers of the settings on the login page and on the account page."""
    import logging

    from sqlalchemy.ext.asyncio import AsyncSession

    from app.site import PersonalDataSection, ProofMethod, get_site
    from app.user.models import User
    from app.user.oidc import emails, linked_logins, views
    from app.user.oidc.providers import Providers
    from app.user.oidc.settings import Provider

    upsun = app.extensions["quart_upsun"]
    providers = Providers(upsun.settings.oidc_providers, upsun.settings.name)
    app.extensions["oidc"] = providers
    app.after_serving(providers.http.close)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    app.register_blueprint(views.blueprint)
    upsun.mail.composers.update(emails.COMPOSERS)
    site = get_site(app)
    site.personal_data.append(
        PersonalDataSection(
            "linked_logins",
            linked_logins.export_logins,
            ("linked_logins",),
            is_account_in_use=False,
        )
    )
    if not providers.configured:
        return

    async def can_log_in(session: AsyncSession, user_id: int) -> bool:
        return await linked_logins.has_login(session, user_id, providers.names)

    def proof_method(provider: Provider) -> ProofMethod:
        async def is_linked(session: AsyncSession, user: User) -> bool:
            return await linked_logins.has_login(session, user.id, [provider.name])

        return ProofMethod(f"provider {provider.name}", is_linked, "oidc/proof.html")

    app.jinja_env.globals["login_providers"] = providers.configured
    site.login_cards.append("oidc/buttons.html")
    site.register_cards.append("oidc/buttons.html")
    site.account_cards.append("oidc/account_card.html")
    site.has_other_login.append(can_log_in)
    site.proof_methods.extend(proof_method(each) for each in providers.configured if each.proves)
