"""accounts and toolkit tables

Revision ID: 3f6a1d9b2c40
Revises: none
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "3f6a1d9b2c40"
down_revision = None
branch_labels = None
depends_on = None

STATUS = postgresql.ENUM(
    *("queued", "picked", "successful", "exception", "canceled", "deleted", "failed"),
    name="pgqueuer_status",
    create_type=False,
)


def time(name: str, *, nullable: bool = False, default: str | None = "now()") -> sa.Column[object]:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        server_default=sa.text(default) if default else None,
        nullable=nullable,
    )


def upgrade() -> None:
    create_users()
    create_idempotent_answers()
    create_security()
    create_jobs()
    create_live_events()
    create_mails()
    create_environments()


def create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("username", sa.String(25), nullable=False),
        sa.Column("email", sa.String(254)),
        sa.Column("pending_email", sa.String(254)),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("session_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("role", sa.String(20), server_default="member", nullable=False),
        sa.Column("deactivated_at", sa.DateTime(timezone=True)),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
    )
    # Case-insensitive: "Ada" and "ada" are the same user.
    op.create_index("uq_users_username", "users", [sa.text("lower(username)")], unique=True)
    op.create_index("uq_users_email", "users", [sa.text("lower(email)")], unique=True)
    for column in ("username", "email", "pending_email"):
        op.create_index(
            f"ix_users_{column}_prefix", "users", [sa.text(f"lower({column}) text_pattern_ops")]
        )


def create_idempotent_answers() -> None:
    op.create_table(
        "idempotent_answers",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_idempotent_answers_user_id_users"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotent_answers")),
    )
    op.create_index("ix_idempotent_answers_created_at", "idempotent_answers", ["created_at"])


def create_security() -> None:
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
    # Append-only, even for bugs in the application. Maintenance sets app.audit_maintenance first.
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


def create_jobs() -> None:
    # The same as `pgq sql install` of PgQueuer 1.6.
    # squawk-ignore prefer-identity: the library uses the name of the sequence
    STATUS.create(op.get_bind())
    op.create_table(
        "pgqueuer",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("queue_manager_id", postgresql.UUID()),
        time("created"),
        time("updated"),
        time("heartbeat"),
        time("execute_after"),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
        sa.Column("dedupe_key", sa.Text()),
        sa.Column("payload", sa.LargeBinary()),
        sa.Column("headers", postgresql.JSONB()),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("slot", sa.BigInteger()),
    )
    op.create_table(
        "pgqueuer_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), primary_key=True),
        time("created"),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
        sa.Column("traceback", postgresql.JSONB()),
        sa.Column("aggregated", sa.Boolean(), server_default=sa.text("false")),
    )
    op.create_table(
        "pgqueuer_schedules",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        sa.Column("expression", sa.Text(), nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
        time("heartbeat"),
        time("created"),
        time("updated"),
        time("next_run"),
        time("last_run", nullable=True, default=None),
        sa.Column("status", STATUS, server_default="queued"),
        sa.UniqueConstraint(
            "expression", "entrypoint", name="pgqueuer_schedules_expression_entrypoint_key"
        ),
    )
    op.create_table(
        "pgqueuer_statistics",
        sa.Column("id", sa.BigInteger(), primary_key=True),
        time("created", default="date_trunc('sec', now())"),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("status", STATUS, nullable=False),
        sa.Column("entrypoint", sa.Text(), nullable=False),
    )
    for table, name, what in INDEXES:
        kind = "UNIQUE INDEX" if "unique" in name or "slot" in name else "INDEX"
        op.execute(f"CREATE {kind} {name} ON {table} USING btree {what}")
    op.execute(CHANGED)
    op.execute(
        """
        CREATE TRIGGER tg_pgqueuer_changed
        AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON pgqueuer
        EXECUTE FUNCTION fn_pgqueuer_changed()
        """
    )


INDEXES = (
    ("pgqueuer", "pgqueuer_ep_ea_idx", "(entrypoint, execute_after) WHERE status = 'queued'"),
    (
        "pgqueuer",
        "pgqueuer_ep_prio_id_idx",
        "(entrypoint, priority DESC, id) WHERE status = 'queued'",
    ),
    ("pgqueuer", "pgqueuer_picked_heartbeat_idx", "(heartbeat) WHERE status = 'picked'"),
    (
        "pgqueuer",
        "pgqueuer_picked_slot_idx",
        "(entrypoint, slot) WHERE status = 'picked' AND slot IS NOT NULL",
    ),
    (
        "pgqueuer",
        "pgqueuer_priority_id_id1_idx",
        "(priority, id DESC) INCLUDE (id) WHERE status = 'queued'",
    ),
    (
        "pgqueuer",
        "pgqueuer_queue_manager_id_idx",
        "(queue_manager_id) WHERE queue_manager_id IS NOT NULL",
    ),
    (
        "pgqueuer",
        "pgqueuer_unique_dedupe_key",
        "(dedupe_key) WHERE status IN ('queued', 'picked') AND dedupe_key IS NOT NULL",
    ),
    (
        "pgqueuer",
        "pgqueuer_updated_id_id1_idx",
        "(updated, id DESC) INCLUDE (id) WHERE status = 'picked'",
    ),
    ("pgqueuer_log", "pgqueuer_log_created", "(created)"),
    ("pgqueuer_log", "pgqueuer_log_job_id_status", "(job_id, created DESC)"),
    ("pgqueuer_log", "pgqueuer_log_not_aggregated", "((1)) WHERE NOT aggregated"),
    ("pgqueuer_log", "pgqueuer_log_status", "(status)"),
    (
        "pgqueuer_statistics",
        "pgqueuer_statistics_unique_count",
        "(priority, date_trunc('sec', timezone('UTC', created)), status, entrypoint)",
    ),
)

# Notifies the workers of changes, except updates: these are mostly their own.
CHANGED = """
CREATE FUNCTION fn_pgqueuer_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        PERFORM pg_notify(
            'ch_pgqueuer',
            json_build_object(
                'channel', 'ch_pgqueuer',
                'operation', lower(TG_OP),
                'sent_at', now(),
                'table', TG_TABLE_NAME,
                'type', 'table_changed_event'
            )::text
        );
    END IF;
    RETURN NULL;
END $$
"""


def create_live_events() -> None:
    op.create_table(
        "live_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_live_events_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_live_events")),
    )
    op.create_index("ix_live_events_created_at", "live_events", ["created_at"])
    op.create_index("ix_live_events_user_id", "live_events", ["user_id", "id"])


def create_mails() -> None:
    op.create_table(
        "mails",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mails")),
    )


def create_environments() -> None:
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
        sa.PrimaryKeyConstraint("id", name=op.f("pk_database_owner")),
        sa.CheckConstraint("id = 1", name=op.f("ck_database_owner_one_row")),
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
    for table in (
        *("sanitizations", "database_owner", "mails", "live_events"),
        *("pgqueuer_statistics", "pgqueuer_schedules", "pgqueuer_log", "pgqueuer"),
        *("rate_limits", "audit_events", "idempotent_answers", "users"),
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION fn_pgqueuer_changed()")
    op.execute("DROP TYPE pgqueuer_status")
    op.execute("DROP FUNCTION refuse_audit_change()")
