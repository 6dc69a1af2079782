"""accounts: confirmation, roles, audit trail, rate limits, outbox, sanitizing

Revision: 8c2d51b7f0a3
Follows: 1f0c6c6d2a4e
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "8c2d51b7f0a3"
down_revision = "1f0c6c6d2a4e"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # NULL until an address is confirmed. Those of older accounts count as confirmed, and so do
    # those of accounts that the release before makes while this one is deployed.
    # squawk-ignore ban-drop-not-null: the release before shows nobody's address, and finds users
    # by it only to compare it with one that was typed
    op.alter_column("users", "email", nullable=True)
    op.add_column("users", sa.Column("pending_email", sa.String(254)))
    op.add_column(
        "users", sa.Column("role", sa.String(20), server_default="member", nullable=False)
    )
    op.add_column("users", sa.Column("deactivated_at", sa.DateTime(timezone=True)))

    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("user_id", sa.BigInteger()),
        sa.Column("actor_id", sa.BigInteger()),
        sa.Column("client", sa.String(45)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index("ix_audit_events_user_id", "audit_events", ["user_id", "id"])
    # Append-only, also for a mistake in the application: what must remove rows, says so first.
    op.execute(
        """
        CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF coalesce(current_setting('app.audit_maintenance', true), '') <> 'on' THEN
                RAISE EXCEPTION 'audit_events is append-only'
                    USING ERRCODE = 'insufficient_privilege';
            END IF;
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
        """
    )

    op.create_table(
        "rate_limits",
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("bucket", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("used_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", "bucket", name=op.f("pk_rate_limits")),
        prefixes=["UNLOGGED"],
    )
    op.create_index("ix_rate_limits_used_until", "rate_limits", ["used_until"])

    op.create_table(
        "mails",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column(
            "data", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.Column("error", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mails")),
    )
    op.create_index(
        "ix_mails_due_at", "mails", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )

    op.create_table(
        "sanitizations",
        sa.Column("environment", sa.String(255), nullable=False),
        sa.Column("table", sa.String(63)),
        sa.Column("position", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "started_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("environment", name=op.f("pk_sanitizations")),
    )


def downgrade() -> None:
    op.drop_table("sanitizations")
    op.drop_table("mails")
    op.drop_table("rate_limits")
    op.drop_table("audit_events")
    op.execute("DROP FUNCTION refuse_audit_change()")
    # The release before knows no account without an address.
    op.execute(
        """
        UPDATE users SET email = 'user-' || id || '@unconfirmed.invalid' WHERE email IS NULL
        """
    )
    op.alter_column("users", "email", nullable=False)
    op.drop_column("users", "deactivated_at")
    op.drop_column("users", "role")
    op.drop_column("users", "pending_email")
