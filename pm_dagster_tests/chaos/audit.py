"""The audit of the control table: every change of a status, by whom and when.

Put here: what notes it down, inside the database. Keep out: what is made of it (``oracle.py``).
"""

from __future__ import annotations

from contextlib import closing

import psycopg2

_AUDIT = """
CREATE SCHEMA proof;
CREATE TABLE proof.change (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_id bigint NOT NULL,
    before text,
    after text,
    who text NOT NULL DEFAULT current_setting('application_name')
);
CREATE FUNCTION proof.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = proof, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO proof.change (run_id, after) VALUES (NEW.run_id, NEW.run_sttus_name);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO proof.change (run_id, before) VALUES (OLD.run_id, OLD.run_sttus_name);
    ELSIF OLD.run_sttus_name = 'WAITING' AND NEW.run_sttus_name = 'WAITING'
        AND current_setting('application_name') <> 'process_manager'
        AND (NEW.wkf_job_id, NEW.file_name, NEW.cntrt_id, NEW.wkf_job_run_id)
            IS DISTINCT FROM (OLD.wkf_job_id, OLD.file_name, OLD.cntrt_id, OLD.wkf_job_run_id) THEN
        -- Its owner corrects what is asked for: that is a request of its own.
        INSERT INTO proof.change (run_id, before, after) VALUES (NEW.run_id, 'corrected', NEW.run_sttus_name);
    ELSE
        INSERT INTO proof.change (run_id, before, after) VALUES (NEW.run_id, OLD.run_sttus_name, NEW.run_sttus_name);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER proof AFTER INSERT OR UPDATE OR DELETE ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION proof.note();
"""


def install(database_url: str) -> None:
    """Let every change of the control table be noted from now on: from what to what, by whom, when."""
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(_AUDIT)
