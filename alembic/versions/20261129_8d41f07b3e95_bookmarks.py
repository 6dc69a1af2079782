"""import of bookmark files

Revision ID: 8d41f07b3e95
Revises: 5c9e2a71d864
"""

import sqlalchemy as sa
from alembic import op

revision = "8d41f07b3e95"
down_revision = "5c9e2a71d864"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "link_imports",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=20), server_default="waiting", nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("seen", sa.Integer(), server_default="0", nullable=False),
        sa.Column("added", sa.Integer(), server_default="0", nullable=False),
        sa.Column("refused", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.String(length=200)),
        sa.Column("warning", sa.String(length=1000)),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_link_imports_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_link_imports")),
    )
    op.create_index("ix_link_imports_user_id", "link_imports", ["user_id"])
    op.create_table(
        "link_import_chunks",
        sa.Column("import_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["import_id"],
            ["link_imports.id"],
            name=op.f("fk_link_import_chunks_import_id_link_imports"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("import_id", "number", name=op.f("pk_link_import_chunks")),
    )


def downgrade() -> None:
    op.drop_table("link_import_chunks")
    op.drop_table("link_imports")
