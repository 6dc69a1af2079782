"""`make lint` rejects unsafe migrations, and names the file and the rule."""

import re
from pathlib import Path

import pytest

from app.settings import ROOT
from development.migrations_lint import RECIPES
from tests.migrations.recipes import Tree

# Name -> the body of an unsafe `upgrade`, and a part of the error.
UNSAFE = {
    "index": ('op.create_index("ix_a", "users", ["created_at"])', "require-concurrent"),
    "index that is not repeatable": (
        "with op.get_context().autocommit_block():\n"
        '        op.create_index("ix_a", "users", ["email"], postgresql_concurrently=True)',
        "prefer-robust-stmts",
    ),
    "index in the transaction": (
        'op.create_index("ix_a", "users", ["email"], postgresql_concurrently=True,'
        " if_not_exists=True)",
        "ban-concurrent-index-creation-in-transaction",
    ),
    "not null": ('op.alter_column("users", "email", nullable=False)', "adding-not-nullable-field"),
    "drop": ('op.drop_column("users", "email")', "ban-drop-column"),
    "rename": ('op.alter_column("users", "email", new_column_name="mail")', "renaming-column"),
    "required": (
        'op.add_column("users", sa.Column("a", sa.Text(), nullable=False))',
        "adding-required-field",
    ),
    "type": (
        'op.alter_column("users", "session_version", type_=sa.BigInteger())',
        "changing-column-type",
    ),
    "foreign key": (
        'op.create_foreign_key("fk_a", "users", "users", ["session_version"], ["id"])',
        "constraint-missing-not-valid",
    ),
    "validation": (
        'op.execute("ALTER TABLE users VALIDATE CONSTRAINT ck_users_a")',
        "autocommit_block",
    ),
    "query result": (
        'op.get_bind().execute(sa.text("SELECT 1")).one()',
        "not-printable",
    ),
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree", "")


def add(tree: Tree, statement: str, comment: str = "") -> Path:
    return tree.add(
        f"def upgrade():\n    {comment}\n    {statement}\n\n\ndef downgrade():\n    pass\n"
    )


def test_lint_accepts_the_existing_migrations(tree: Tree) -> None:
    result = tree.lint()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", UNSAFE)
def test_lint_rejects_an_unsafe_migration(tree: Tree, name: str) -> None:
    statement, expected = UNSAFE[name]
    path = add(tree, statement)
    safe = add(tree, 'op.add_column("users", sa.Column("b", sa.Text()))')
    result = tree.lint()
    assert result.returncode == 1
    assert f"alembic/versions/{path.name}: " in result.stderr
    assert expected in result.stderr
    assert "docs/migrations.md" in result.stderr
    assert "Traceback" not in result.stderr
    assert safe.name not in result.stderr


def test_each_named_recipe_exists(tree: Tree) -> None:
    text = (ROOT / "docs" / "migrations.md").read_text()
    anchors = {
        each.lower().replace(" ", "-") for each in re.findall("^## (.+)$", text, re.MULTILINE)
    }
    assert {*RECIPES.values()} <= anchors
    add(tree, 'op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))')
    result = tree.lint()
    assert result.returncode == 1
    assert ": prefer-identity: " in result.stderr
    assert "See docs/migrations.md#create-a-table." in result.stderr


def test_a_comment_with_a_reason_disables_a_rule(tree: Tree) -> None:
    drop = 'op.drop_column("users", "email")'
    path = add(tree, drop, "# squawk-ignore ban-drop-column: no release uses it")
    assert tree.lint().returncode == 0
    path.unlink()

    tree = Tree(tree.directory.with_name("without a reason"), "")
    add(tree, drop, "# squawk-ignore ban-drop-column:")
    assert tree.lint().returncode == 1

    tree = Tree(tree.directory.with_name("unused"), "")
    add(tree, "pass", "# squawk-ignore ban-drop-column: a copy from another migration")
    result = tree.lint()
    assert result.returncode == 1
    assert "ban-drop-column: " in result.stderr


def test_lint_accepts_indexes_on_new_tables(tree: Tree) -> None:
    add(
        tree,
        'op.create_table("links",'
        ' sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),'
        ' sa.Column("user_id", sa.BigInteger(), nullable=False))\n'
        '    op.create_index("ix_links_user_id", "links", ["user_id"])',
    )
    result = tree.lint()
    assert result.returncode == 0, result.stderr
