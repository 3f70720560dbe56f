-- The ledger: what was intended, sent and learned for each waiting job and generation.

CREATE TABLE {schema}.identity (
    environment uuid NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row)
);
COMMENT ON TABLE {schema}.identity IS
    'One row: the environment that idempotency tokens are made of, so that two databases never share a token.';
INSERT INTO {schema}.identity DEFAULT VALUES;

CREATE TABLE {schema}.dispatcher (
    dispatcher_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    actor text NOT NULL,
    liveness text NOT NULL CHECK (liveness IN ('lock', 'lease')),
    lease_until timestamptz,
    started_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    ended_as text CHECK (ended_as IN ('done', 'dead'))
);
CREATE INDEX dispatcher_open ON {schema}.dispatcher (dispatcher_id) WHERE ended_at IS NULL;
COMMENT ON TABLE {schema}.dispatcher IS
    'One row per process that dispatches. Alive: it holds its session lock, or its lease has not run out.';

CREATE TABLE {schema}.entry (
    entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    control_table text NOT NULL,
    run_id bigint NOT NULL,
    generation integer NOT NULL CHECK (generation > 0),
    branch text NOT NULL CHECK (branch IN ('new', 'repair')),
    state text NOT NULL CHECK (state IN
        ('CLAIMED', 'SENDING', 'ACCEPTED', 'DEFERRED', 'QUARANTINED', 'SCHEDULED', 'WITHDRAWN')),
    open boolean NOT NULL DEFAULT true,
    dispatcher_id bigint REFERENCES {schema}.dispatcher,
    job_id bigint,
    previous_run_id bigint,
    parameters jsonb NOT NULL DEFAULT '{{}}',
    idempotency_token text,
    fresh_run boolean NOT NULL DEFAULT false,
    sent_repair_id bigint,
    intent_at timestamptz,
    ambiguous boolean NOT NULL DEFAULT false,
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    outcome text,
    succeeded boolean NOT NULL DEFAULT false,
    accepted_run_id bigint,
    accepted_repair_id bigint,
    page_url text,
    reason text,
    waiting_since timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz,
    UNIQUE (control_table, run_id, generation),
    CHECK (open = (state NOT IN ('SCHEDULED', 'WITHDRAWN') AND closed_at IS NULL))
);
-- One open entry per row: the key that guards every claim.
CREATE UNIQUE INDEX entry_open ON {schema}.entry (control_table, run_id) WHERE open;
CREATE INDEX entry_unresolved ON {schema}.entry (entry_id) WHERE open AND state IN ('SENDING', 'ACCEPTED');

CREATE TABLE {schema}.event (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_id bigint REFERENCES {schema}.entry,
    dispatcher_id bigint REFERENCES {schema}.dispatcher,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    call text,
    status integer,
    seconds double precision,
    detail text NOT NULL DEFAULT ''
);
CREATE INDEX event_of_entry ON {schema}.event (entry_id, event_id);
COMMENT ON TABLE {schema}.event IS 'Append-only history: every intent, call, answer, adoption. No secrets.';
