"""linked logins

Revision ID: e6b0c35a9f17
Revises: e7a4c15d82f9
"""

import sqlalchemy as sa
from alembic import op

revision = "e6b0c35a9f17"
down_revision = "e7a4c15d82f9"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "linked_logins",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("provider", sa.String(length=30), nullable=False),
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("email", sa.String(length=254)),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("last_used_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_linked_logins_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_linked_logins")),
        sa.UniqueConstraint(
            "provider", "issuer", "subject", name=op.f("uq_linked_logins_provider")
        ),
    )
    op.create_index("ix_linked_logins_user_id", "linked_logins", ["user_id"])


def downgrade() -> None:
    op.drop_table("linked_logins")
