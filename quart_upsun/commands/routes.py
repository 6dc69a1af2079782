"""`quart routes`: list the routes with their policies."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import click
from quart import Quart
from werkzeug.routing import Rule

from quart_upsun.commands.description import AUTOMATIC_METHODS, describe_route
from quart_upsun.commands.tables import format_table

# The options of Quart's own command. `match` is the order in which rules are tried.
SORT_KEYS: dict[str, Callable[[Rule], Any]] = {
    "endpoint": attrgetter("endpoint"),
    "rule": attrgetter("rule"),
    "methods": lambda rule: sorted(rule.methods or ()),
    "domain": lambda rule: rule.host or rule.subdomain or "",
}


def list_routes(app: Quart, *, sort: str, all_methods: bool) -> None:
    """Print the routes of an application.

    Args:
        app: the application.
        sort: a key of `SORT_KEYS`, or `match`.
        all_methods: whether to show HEAD and OPTIONS.
    """
    rules = list(app.url_map.iter_rules())
    if not rules:
        click.echo("No routes were registered.")
        return
    if sort in SORT_KEYS:
        rules.sort(key=SORT_KEYS[sort])
    domain = SORT_KEYS["domain"]
    headers = ["Endpoint", "Methods", "Rule", "Login", "Cache", "Limit"]
    rows = []
    for rule in rules:
        route = describe_route(app, rule)
        methods = (rule.methods or set()) - (set() if all_methods else AUTOMATIC_METHODS)
        limit = route.limit
        rows.append(
            [
                *(route.endpoint, ", ".join(sorted(methods)), route.rule),
                *(route.access or "-", route.cache or "-"),
                f"{limit.count} in {limit.seconds} s" if limit else "-",
            ]
        )
    if any(map(domain, rules)):
        headers.insert(2, "Host" if app.url_map.host_matching else "Subdomain")
        for rule, row in zip(rules, rows, strict=True):
            row.insert(2, domain(rule))
    click.echo(format_table(headers, rows))
