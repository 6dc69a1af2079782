"""`quart inspect`: describe the application."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from quart import Quart

from quart_upsun.commands.tables import format_table

if TYPE_CHECKING:
    from quart_upsun.commands.description import Description, Model, Setting


def inspect_command(app: Quart) -> click.Command:
    """Return the `quart inspect` command."""

    @click.command("inspect")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    def inspect(as_json: bool) -> None:
        """Show the application's features, routes, models, tasks, schedules and settings.

        It works without a database, built assets and keys, and never shows values of settings.
        """
        # Imported here: a server has this command too, and must start fast.
        from quart_upsun.commands.description import describe

        try:
            description = describe(app)
        except ValueError as error:
            raise click.ClickException(f"pyproject.toml is not valid: {error}.") from None
        if as_json:
            click.echo(json.dumps(asdict(description), indent=2, default=str))
        else:
            click.echo(format_description(description))

    return inspect


def format_description(found: "Description") -> str:
    """Return a description as text, with a heading and a table for each part."""
    release = [[name, str(value)] for name, value in (found.release or {}).items()]
    parts = [
        ("Release", ["Key", "Value"], release),
        ("Features", ["Name", "Summary"], [[each.module, each.summary] for each in found.features]),
        (
            "Routes",
            ["Rule", "Methods", "Endpoint", "Access", "Cache", "Limit", "Audit"],
            [
                [
                    *(each.rule, ", ".join(each.methods), each.endpoint),
                    *(each.access or "-", each.cache or "-"),
                    f"{each.limit.count} in {each.limit.seconds} s" if each.limit else "-",
                    ", ".join(each.audit_events) or "-",
                ]
                for each in found.routes
            ],
        ),
        (
            "Models",
            ["Table", "Column", "Type", "Sanitizing"],
            [row for each in found.models for row in _columns(each)],
        ),
        (
            "Tasks",
            ["Name", "Function", "Timeout", "Attempts"],
            [
                [
                    *(each.name, each.function),
                    f"{each.timeout_seconds:g} s",
                    str(len(each.backoff_seconds) + 1),
                ]
                for each in found.tasks
            ],
        ),
        ("Schedules", ["Task", "Cron"], [[each.task, each.cron] for each in found.schedules]),
        (
            "Settings",
            ["Variable", "Type", "Default", "Meaning"],
            [
                [each.variable, each.type, _default(each), each.description]
                for each in found.settings
            ],
        ),
    ]
    return "\n\n".join(
        f"{title}\n\n{format_table(headers, rows)}" for title, headers, rows in parts if rows
    )


def _columns(model: "Model") -> list[list[str]]:
    rows = []
    for column in model.columns:
        if model.is_emptied:
            rule = "emptied"
        elif column.sanitizing:
            rule = " ".join(filter(None, [column.sanitizing.kind, column.sanitizing.expression]))
        else:
            rule = "-"
        rows.append([model.table, column.name, column.type, " ".join(rule.split())])
    return rows


def _default(setting: "Setting") -> str:
    if setting.is_required:
        return "required"
    return "secret" if setting.is_secret else str(setting.default)
