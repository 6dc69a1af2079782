"""search of users by first letters

Revision: d4e07a9c3b16
Follows: 8c2d51b7f0a3
"""

import sqlalchemy as sa
from alembic import op

revision = "d4e07a9c3b16"
down_revision = "8c2d51b7f0a3"
branch_labels = None
depends_on = None

COLUMNS = ("username", "email", "pending_email")


def upgrade() -> None:
    for column in COLUMNS:
        # What a build that failed has left. A valid one, built before the push, is left alone.
        op.execute(
            f"""
            DO $$ BEGIN
                IF EXISTS (
                    SELECT FROM pg_index
                    WHERE indexrelid = to_regclass('ix_users_{column}_prefix') AND NOT indisvalid
                ) THEN
                    DROP INDEX ix_users_{column}_prefix;
                END IF;
            END $$
            """
        )
    with op.get_context().autocommit_block():
        # It waits for every transaction that is open, and whoever comes later need not wait for it.
        op.execute("SET lock_timeout = 0")
        op.execute("SET statement_timeout = '15min'")
        for column in COLUMNS:
            op.create_index(
                f"ix_users_{column}_prefix",
                "users",
                [sa.text(f"lower({column}) text_pattern_ops")],
                postgresql_concurrently=True,
                if_not_exists=True,
            )
        op.execute("RESET lock_timeout")
        op.execute("RESET statement_timeout")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for column in COLUMNS:
            op.drop_index(
                f"ix_users_{column}_prefix", "users", postgresql_concurrently=True, if_exists=True
            )
