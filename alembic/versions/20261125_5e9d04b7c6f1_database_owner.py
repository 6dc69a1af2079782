"""database owner: the environment that a database belongs to

Revision: 5e9d04b7c6f1
Follows: b51f6a90c2e8
"""

import sqlalchemy as sa
from alembic import op

revision = "5e9d04b7c6f1"
down_revision = "b51f6a90c2e8"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "database_owner",
        sa.Column("id", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("environment", sa.String(255), nullable=False),
        sa.Column("type", sa.String(20), nullable=False),
        sa.Column(
            "claimed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_database_owner"),
        sa.CheckConstraint("id = 1", name="ck_database_owner_one_row"),
    )


def downgrade() -> None:
    op.drop_table("database_owner")
