"""`make lint` stops a migration that would stop the site, and says which and why."""

from pathlib import Path

import pytest

from tests.migrations.recipes import Tree

# A bad `upgrade`, and a word of what is said about it.
BAD = {
    "index": ('op.create_index("ix_a", "users", ["created_at"])', "require-concurrent"),
    "index that cannot be repeated": (
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
    "a question": (
        'op.get_bind().execute(sa.text("SELECT 1")).one()',
        "cannot print",
    ),
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree", "no database is needed")


def add(tree: Tree, statement: str, comment: str = "") -> Path:
    return tree.add(
        f"def upgrade():\n    {comment}\n    {statement}\n\n\ndef downgrade():\n    pass\n"
    )


def test_the_migrations_that_are_there_pass(tree: Tree) -> None:
    result = tree.lint()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_migration_is_named(tree: Tree, name: str) -> None:
    statement, words = BAD[name]
    path = add(tree, statement)
    good = add(tree, 'op.add_column("users", sa.Column("b", sa.Text()))')
    result = tree.lint()
    assert result.returncode == 1
    assert f"alembic/versions/{path.name}: " in result.stderr
    assert words in result.stderr
    assert "docs/migrations.md" in result.stderr
    assert "Traceback" not in result.stderr
    assert good.name not in result.stderr


def test_a_migration_may_say_that_it_means_it(tree: Tree) -> None:
    drop = 'op.drop_column("users", "email")'
    path = add(tree, drop, "# squawk-ignore ban-drop-column: nobody names it any more")
    assert tree.lint().returncode == 0
    path.unlink()

    tree = Tree(tree.directory.with_name("without a reason"), "")
    add(tree, drop, "# squawk-ignore ban-drop-column:")
    assert tree.lint().returncode == 1

    tree = Tree(tree.directory.with_name("for nothing"), "")
    add(tree, "pass", "# squawk-ignore ban-drop-column: a copy from another migration")
    result = tree.lint()
    assert result.returncode == 1
    assert "nothing of the kind" in result.stderr


def test_new_tables_need_no_care(tree: Tree) -> None:
    add(
        tree,
        'op.create_table("links",'
        ' sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),'
        ' sa.Column("user_id", sa.BigInteger(), nullable=False))\n'
        '    op.create_index("ix_links_user_id", "links", ["user_id"])',
    )
    result = tree.lint()
    assert result.returncode == 0, result.stderr
