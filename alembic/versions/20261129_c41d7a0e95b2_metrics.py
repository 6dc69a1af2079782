"""metrics

Revision ID: c41d7a0e95b2
Revises: e6b0c35a9f17
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "c41d7a0e95b2"
down_revision = "e6b0c35a9f17"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "metrics_minutes",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("process", sa.String(length=32), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("at", "process", name=op.f("pk_metrics_minutes")),
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "metrics_hours",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("minutes", sa.BigInteger(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("at", name=op.f("pk_metrics_hours")),
    )
    op.create_table(
        "metrics_deploys",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("release", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("at", "release", name=op.f("pk_metrics_deploys")),
    )


def downgrade() -> None:
    op.drop_table("metrics_deploys")
    op.drop_table("metrics_hours")
    op.drop_table("metrics_minutes")
