"""notes and warnings of imports

Revision: 5e92c0a7d4f1
Follows: c7de41f83b05
"""

import sqlalchemy as sa
from alembic import op

revision = "5e92c0a7d4f1"
down_revision = "c7de41f83b05"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "links",
        sa.Column(
            "description_given", sa.Boolean(), server_default=sa.text("false"), nullable=False
        ),
    )
    op.add_column("link_imports", sa.Column("warning", sa.String(length=1000)))


def downgrade() -> None:
    op.drop_column("link_imports", "warning")
    op.drop_column("links", "description_given")
