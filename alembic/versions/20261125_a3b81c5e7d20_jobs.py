"""jobs: the tables of PgQueuer

Revision: a3b81c5e7d20
Follows: d4e07a9c3b16
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "a3b81c5e7d20"
down_revision = "d4e07a9c3b16"
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
    # As PgQueuer's own `pgq sql install` has it, in its version 1.6.
    # squawk-ignore prefer-identity: the library asks for the name of the sequence
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

# Tells the workers that there is something to look at. They change rows themselves all the time.
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


def downgrade() -> None:
    for table in ("pgqueuer_statistics", "pgqueuer_schedules", "pgqueuer_log", "pgqueuer"):
        op.drop_table(table)
    op.execute("DROP FUNCTION fn_pgqueuer_changed()")
    op.execute("DROP TYPE pgqueuer_status")
