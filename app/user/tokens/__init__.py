"""Personal access tokens: programs use the API on behalf of a user."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Accept access tokens in the API, and let users create and revoke them."""
    from app.site import PersonalDataSection, get_site
    from app.user.tokens import access_tokens, views

    app.register_blueprint(views.blueprint)
    upsun = app.extensions["quart_upsun"]
    upsun.token_authenticator = access_tokens.authenticate
    upsun.tokens_endpoint = "tokens.index"
    site = get_site(app)
    site.account_cards.append("tokens/account_card.html")
    site.revoke_callbacks.append(access_tokens.revoke_all_tokens)
    site.in_use_conditions.append(access_tokens.has_valid_token)
    site.personal_data.append(
        PersonalDataSection(
            "access_tokens",
            access_tokens.export_tokens,
            ("access_tokens",),
            is_account_in_use=False,
        )
    )
