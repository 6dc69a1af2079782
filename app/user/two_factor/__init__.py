"""Two-factor authentication with codes of an authenticator app (TOTP), and recovery codes."""

from quart import Quart


def init_app(app: Quart) -> None:
    """Let users turn on two-factor authentication, and ask for codes at their logins.

    With TWO_FACTOR=0 no page exists and no login asks for a code. What users have set up stays, and
    counts again when it is turned on.
    """
    from app.site import (
        AdminUserAction,
        PersonalDataSection,
        ProofMethod,
        SecondFactor,
        get_site,
    )
    from app.user.two_factor import (
        admin_views,
        commands,
        emails,
        enrolment,
        login_views,
        personal_data,
        proof,
        required,
        trusted_browsers,
        views,
    )

    upsun, site = app.extensions["quart_upsun"], get_site(app)
    commands.init_app()
    upsun.mail.composers.update(emails.COMPOSERS)
    site.personal_data.append(
        PersonalDataSection(
            "two_factor",
            personal_data.export,
            ("two_factor_secrets", "recovery_codes"),
            is_account_in_use=False,
        )
    )
    if not upsun.settings.two_factor:
        return
    app.config["TRUSTED_BROWSER_COOKIE_NAME"] = f"{upsun.settings.cookie_prefix}trusted-browser"
    for module in (views, login_views, admin_views):
        app.register_blueprint(module.blueprint)
    site.account_cards.append("two_factor/account_card.html")
    site.trusts_browser = trusted_browsers.is_trusted
    site.second_factors.append(
        SecondFactor(
            "code", "Use your authenticator app", "two_factor_login.code", enrolment.is_enabled
        )
    )
    site.proof_methods.append(
        ProofMethod(
            "code",
            proof.is_available,
            "two_factor/proof.html",
            verify=proof.verify,
        )
    )
    site.admin_user_actions.append(
        AdminUserAction("two_factor/admin_action.html", enrolment.is_enabled)
    )
    if upsun.settings.require_two_factor:
        app.before_request(required.redirect_administrator)
