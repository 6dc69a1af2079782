"""Access tokens, with which programs act for a user."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Let the API accept tokens, and users make and revoke them."""
    from app.site import Part, site_of
    from app.user.tokens import access_tokens, views

    app.register_blueprint(views.blueprint)
    app.extensions["quart_upsun"].token_authenticator = access_tokens.authenticate
    site = site_of(app)
    site.access_page = "tokens.index"
    site.account_cards.append("tokens/account_card.html")
    site.revoke.append(access_tokens.end_all)
    site.keeps_account.append(access_tokens.is_in_use)
    site.personal_data.append(
        Part("access_tokens", access_tokens.personal_data, ("access_tokens",), keeps_account=False)
    )
