"""reading list

Revision ID: b27e58c4d019
Revises: 8d41f07b3e95
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "b27e58c4d019"
down_revision = "8d41f07b3e95"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "link_icons",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("content_type", sa.String(length=40), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_link_icons")),
    )
    op.create_table(
        "links",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("title", sa.String(length=300), server_default="", nullable=False),
        sa.Column("title_given", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("description", sa.String(length=1000), server_default="", nullable=False),
        sa.Column(
            "description_given", sa.Boolean(), server_default=sa.text("false"), nullable=False
        ),
        sa.Column("icon_digest", sa.LargeBinary()),
        sa.Column("tags", sa.ARRAY(sa.String(length=40)), server_default="{}", nullable=False),
        sa.Column("archived", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("attempted_at", sa.DateTime(timezone=True)),
        sa.Column("fetched_at", sa.DateTime(timezone=True)),
        sa.Column("fetch_error", sa.String(length=200)),
        sa.Column("search", postgresql.TSVECTOR()),
        sa.ForeignKeyConstraint(
            ["icon_digest"], ["link_icons.digest"], name=op.f("fk_links_icon_digest_link_icons")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_links_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_links")),
        sa.UniqueConstraint("user_id", "url", name="uq_links_user_id"),
    )
    op.create_index(
        "ix_links_user_id_attempted_at", "links", ["user_id", sa.text("attempted_at NULLS FIRST")]
    )
    op.create_index("ix_links_icon_digest", "links", ["icon_digest"])
    op.create_index("ix_links_search", "links", ["search"], postgresql_using="gin")
    op.create_index("ix_links_user_id", "links", ["user_id", "id"])
    op.create_index("ix_links_user_id_archived", "links", ["user_id", "archived", "id"])
    op.create_table(
        "public_lists",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.String(length=40), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_public_lists_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "tag", name=op.f("pk_public_lists")),
    )
    op.create_table(
        "link_tags",
        sa.Column("link_id", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.String(length=40), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("archived", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["link_id"], ["links.id"], name=op.f("fk_link_tags_link_id_links"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("link_id", "tag", name=op.f("pk_link_tags")),
    )
    op.create_index("ix_link_tags_user_id", "link_tags", ["user_id", "tag", "link_id"])
    op.create_index(
        "ix_link_tags_user_id_archived", "link_tags", ["user_id", "tag", "archived", "link_id"]
    )
    op.execute(
        """
        CREATE FUNCTION set_link_tags() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'UPDATE' THEN
                IF (NEW.tags, NEW.archived) IS NOT DISTINCT FROM (OLD.tags, OLD.archived) THEN
                    RETURN NULL;
                END IF;
                DELETE FROM link_tags WHERE link_id = NEW.id;
            END IF;
            INSERT INTO link_tags (link_id, tag, user_id, archived)
            SELECT NEW.id, tag, NEW.user_id, NEW.archived FROM unnest(NEW.tags) AS tag;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER set_tags AFTER INSERT OR UPDATE OF tags, archived ON links
        FOR EACH ROW EXECUTE FUNCTION set_link_tags()
        """
    )


def downgrade() -> None:
    op.drop_table("link_tags")
    op.drop_table("public_lists")
    op.drop_table("links")
    op.drop_table("link_icons")
    op.execute("DROP FUNCTION set_link_tags()")
