"""log positions

Revision ID: f2b8d06c4e13
Revises: c4d81e6f2a70
"""

import sqlalchemy as sa
from alembic import op

revision = "f2b8d06c4e13"
down_revision = "c4d81e6f2a70"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "log_positions",
        sa.Column("user_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_log_positions")),
        prefixes=["UNLOGGED"],
    )


def downgrade() -> None:
    op.drop_table("log_positions")
