"""The idioms of templates for Flask, Flask-Login, Flask-WTF and Flask-Static-Digest."""

import logging
from collections.abc import AsyncIterator

import pytest
from jinja2 import DictLoader, TemplateAssertionError
from quart import Quart, flash, g, render_template_string, session
from werkzeug.routing import BuildError
from wtforms import HiddenField, PasswordField, StringField

from app import create_app
from app.adopt.endpoints import OLD_ENDPOINTS
from app.settings import Settings
from app.user.models import Role, User
from quart_upsun.identity import set_session_user
from quart_upsun.web import forms
from quart_upsun.web.blocks import BlockChecker, check_blocks
from quart_upsun.web.forms import Form
from tests.features.factories import new_client


class LoginForm(Form):
    """As a Flask developer would bring it; only the base class has changed."""

    username = StringField("Username")
    password = PasswordField("Password")
    next = HiddenField(default="/users/")


ADA = User(id=7, username="ada", email="ada@example.com", role=Role.ADMINISTRATOR)

# Name -> a template, what it renders for nobody, and for a member if that differs.
IDIOMS: dict[str, tuple[str, str] | tuple[str, str, str]] = {
    "current_user and is_authenticated": (
        "{% if current_user and current_user.is_authenticated %}in{% else %}out{% endif %}",
        "out",
        "in",
    ),
    "is_authenticated": ("{{ current_user.is_authenticated }}", "False", "True"),
    "not is_authenticated": ("{{ not current_user.is_authenticated }}", "True", "False"),
    "is_anonymous": ("{{ current_user.is_anonymous }}", "True", "False"),
    "is_active": ("{{ current_user.is_active }}", "False", "True"),
    "is_admin": ("{{ current_user.is_admin }}", "False", "True"),
    "get_id": ("{{ current_user.get_id() }}", "None", "7"),
    "username": ("{{ current_user.username }}", "None", "ada"),
    "username or": ("{{ current_user.username or 'nobody' }}", "nobody", "ada"),
    "g.user": ("{{ g.get('user').username if g.get('user') }}", "", "ada"),
    "flashed messages": ("{{ get_flashed_messages() | join }}", "ab"),
    "flashed messages with categories": (
        "{% for category, message in get_flashed_messages(with_categories=true) %}"
        "{{ category }}:{{ message }} {% endfor %}",
        "info:a error:b ",
    ),
    "flashed messages of a category": (
        "{{ get_flashed_messages(category_filter=['error']) | join }}",
        "b",
    ),
    "flashed messages of one category after the other": (
        "{{ get_flashed_messages(category_filter=['error']) | join }}"
        "{% for category, message in get_flashed_messages(true, category_filter=('info',)) %}"
        "{{ category }}:{{ message }}{% endfor %}",
        "binfo:a",
    ),
    "flashed messages in a with block": (
        "{% with messages = get_flashed_messages() %}{{ messages | length }}{% endwith %}",
        "2",
    ),
    "static_url_for": ("{{ static_url_for('static', filename='main.css') }}", "/static/DIGESTED"),
    "static_url_for with values": (
        "{{ static_url_for('static', filename='main.css', v=1, _anchor='top') }}",
        "/static/DIGESTED?v=1#top",
    ),
    "static_url_for external": (
        "{{ static_url_for('static', filename='main.css', _external=True) }}",
        "http://localhost/static/DIGESTED",
    ),
    "url_for static": ("{{ url_for('static', filename='main.css') }}", "/static/DIGESTED"),
    "url_for static external": (
        "{{ url_for('static', filename='main.css', _external=True) }}",
        "http://localhost/static/DIGESTED",
    ),
    "url_for static without digest": (
        "{{ url_for('static', filename='robots.txt') }}",
        "/static/robots.txt",
    ),
    "url_for": ("{{ url_for('public.home') }}{{ url_for('public.about') }}", "//about/"),
    "url_for user.members": ("{{ url_for('user.members') }}", "/users/"),
    "url_for with values": (
        "{{ url_for('user.members', page=2, _anchor='list') }}",
        "/users/?page=2#list",
    ),
    "url_for of an old endpoint": (
        "{{ url_for('public.register') }}{{ url_for('public.logout') }}",
        "/register//logout/",
    ),
    "url_for of an old endpoint with values": (
        "{{ url_for('auth.login', next='/x', _external=True, _anchor='form') }}",
        "http://localhost/login/?next=/x#form",
    ),
    "config": ("{{ config.DEBUG }}{{ config['DEBUG'] }}{{ config.get('NONE') }}", "FalseFalseNone"),
    "request": (
        "{{ request.path }} {{ request.endpoint }} {{ request.args.get('q') }}",
        "/about/ public.about word",
    ),
    "request.endpoint comparison": (
        "{{ 'active' if request.endpoint == 'public.about' }}",
        "active",
    ),
    "session": ("{{ session.get('cart') }}{{ 'cart' in session }}", "3True"),
    "csrf_token": (
        '<input type="hidden" name="csrf_token" value="{{ csrf_token() }}">',
        '<input type="hidden" name="csrf_token" value="">',
    ),
    "form.csrf_token": ("[{{ form.csrf_token }}]", "[]"),
    "form.hidden_tag": (
        "{{ form.hidden_tag() }}",
        '<input id="next" name="next" type="hidden" value="/users/">',
    ),
    "form.hidden_tag with names": ("[{{ form.hidden_tag('csrf_token') }}]", "[]"),
    "field": (
        "{{ form.username(class_='form-control', placeholder='Username') }}",
        '<input class="form-control" id="username" name="username" placeholder="Username"'
        ' type="text" value="">',
    ),
    "label": ("{{ form.username.label }}", '<label for="username">Username</label>'),
    "errors": ("{% for error in form.username.errors %}{{ error }}{% else %}ok{% endfor %}", "ok"),
    "loop over fields": (
        "{% for field in form if field.name != 'next' %}{{ field.label.text }} {% endfor %}",
        "Username Password ",
    ),
    "tojson": ("{{ {'a': [1, '<']} | tojson }}", '{"a": [1, "\\u003c"]}'),
    "autoescape": ("{{ '<b>' }}{{ '<b>' | safe }}", "&lt;b&gt;<b>"),
}


@pytest.fixture
async def page(app: Quart) -> AsyncIterator[Quart]:
    """A request of the page `/about/`, with two flashed messages and a value in the session."""
    async with app.test_request_context("/about/?q=word"):
        session["cart"] = 3
        await flash("a", "info")
        await flash("b", "error")
        yield app


@pytest.mark.parametrize("name", IDIOMS)
@pytest.mark.parametrize("is_member", [False, True])
async def test_idiom(page: Quart, name: str, is_member: bool) -> None:
    if is_member:
        set_session_user(ADA)
    template, *expected = IDIOMS[name]
    digested = page.extensions["asset_manifest"]["main.css"]
    found = await render_template_string(template, form=LoginForm())
    assert found.replace(digested, "DIGESTED") == expected[-1 if is_member else 0]
    assert g.get("user") is (ADA if is_member else None)


def test_idioms_of_cookiecutter_flask_are_covered() -> None:
    assert len(IDIOMS) >= 33


async def test_blocks_of_cookiecutter_flask(page: Quart) -> None:
    found = await render_template_string(
        '{% extends "layout.html" %}'
        "{% block page_title %}Shop{% endblock %}"
        "{% block meta_description %}{{ super() }} And a shop.{% endblock %}"
        '{% block css %}<link rel="stylesheet" href="/static/shop.css">{% endblock %}'
        "{% block content %}<h1>Books</h1>{% endblock %}"
        '{% block js %}<script src="/static/shop.js"></script>{% endblock %}'
    )
    head, _, body = found.partition("</head>")
    assert "<title>Shop · " in head
    assert ' And a shop.">' in head
    assert '<link rel="stylesheet" href="/static/shop.css">' in head
    assert "<h1>Books</h1>" in body
    assert body.index("</footer>") < body.index('<script src="/static/shop.js"></script>')


async def test_missing_token_is_explained_once(
    page: Quart, caplog: pytest.LogCaptureFixture
) -> None:
    forms.explain_missing_token.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            await render_template_string(
                "{{ csrf_token() }}{{ form.hidden_tag() }}", form=LoginForm()
            )
    messages = [record for record in caplog.records if "csrf_token" in record.getMessage()]
    assert len(messages) == 1
    assert "Sec-Fetch-Site" in messages[0].getMessage()


async def test_pages_without_tokens_explain_nothing(app: Quart) -> None:
    forms.explain_missing_token.cache_clear()
    assert (await new_client(app).get("/register/")).status_code == 200
    assert forms.explain_missing_token.cache_info().misses == 0


async def test_pages_with_filtered_messages_stay_cacheable(app: Quart) -> None:
    """Without messages, the session is left alone."""
    async with app.test_request_context("/about/"):
        await render_template_string("{{ get_flashed_messages(category_filter=['error']) }}")
        assert not session.accessed


def test_old_endpoints_lead_to_views(app: Quart) -> None:
    assert set(OLD_ENDPOINTS.values()) <= app.view_functions.keys()
    assert not set(OLD_ENDPOINTS) & app.view_functions.keys()


async def test_unknown_endpoint_is_an_error(page: Quart) -> None:
    with pytest.raises(BuildError, match="shop"):
        await render_template_string("{{ url_for('shop.index') }}")


def test_all_templates_have_only_blocks_that_are_rendered(app: Quart) -> None:
    names = app.jinja_env.list_templates()
    assert "layout.html" in names
    for name in names:
        check_blocks(app.jinja_env, name)


PAGES = {
    "base.html": "{% block content %}{% block page %}{% endblock %}{% endblock %}",
    "right.html": (
        '{% extends "base.html" %}{% block page %}{% block own %}{% endblock %}{% endblock %}'
    ),
    "grandchild.html": '{% extends "right.html" %}{% block own %}text{% endblock %}',
    "wrong.html": '{% extends "base.html" %}\n{% block page_content %}text{% endblock %}',
    "dynamic.html": "{% extends layout %}{% block anything %}{% endblock %}",
}


@pytest.fixture
def development(settings: Settings) -> Quart:
    """An application on a laptop with FLASK_DEBUG=1."""
    app = create_app(settings.model_copy(update={"flask_debug": True}))
    app.jinja_env.loader = BlockChecker(DictLoader(PAGES))
    return app


def test_unknown_block_is_an_error_in_development(development: Quart) -> None:
    for name in ("base.html", "right.html", "grandchild.html", "dynamic.html"):
        development.jinja_env.get_template(name)
    with pytest.raises(
        TemplateAssertionError,
        match=r"base.html has no block “page_content”.* It has: content, page",
    ) as raised:
        development.jinja_env.get_template("wrong.html")
    assert (raised.value.lineno, raised.value.name) == (2, "wrong.html")


def test_layout_needs_no_blocks_for_templates_of_the_toolkit(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"flask_debug": True}))
    app.jinja_env.cache = None
    loaders = app.jinja_env.loader.loaders  # type: ignore[union-attr]
    loaders[0] = BlockChecker(DictLoader({"layout.html": "{% block content %}{% endblock %}"}))
    app.jinja_env.get_template("error.html")


def test_unknown_block_is_no_error_in_production(app: Quart) -> None:
    app.jinja_env.loader = DictLoader(PAGES)
    app.jinja_env.get_template("wrong.html")
