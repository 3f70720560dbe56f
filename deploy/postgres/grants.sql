-- Written by: pm grants --for PART --role NAME, for the default names. A test keeps it so.

-- Runs `pm init`; owns the ledger and nothing else. The role has to be there: CREATE ROLE ... LOGIN.
-- Comes before `pm init`.
CREATE SCHEMA IF NOT EXISTS "process_manager" AUTHORIZATION "process_manager_migrator";

-- Dispatches, and runs every other command but `pm init`. The role has to be there: CREATE ROLE ... LOGIN.
-- Comes after `pm init`, and again after an upgrade. Run it as the owner of table and ledger.
BEGIN;
GRANT USAGE ON SCHEMA "public" TO "process_manager_dispatcher";  -- the view and the control table
GRANT SELECT ON TABLE "public"."mm_run_wait_vw" TO "process_manager_dispatcher";  -- the waiting jobs
GRANT SELECT ON TABLE "public"."mm_run_plc" TO "process_manager_dispatcher";  -- status and age of a row; explain shows all of it
GRANT UPDATE ("run_sttus_name") ON TABLE "public"."mm_run_plc" TO "process_manager_dispatcher";  -- the row's status
GRANT UPDATE ("wkf_job_run_id") ON TABLE "public"."mm_run_plc" TO "process_manager_dispatcher";  -- the Databricks run
GRANT UPDATE ("run_page_url") ON TABLE "public"."mm_run_plc" TO "process_manager_dispatcher";  -- the link to it
GRANT UPDATE ("state_msg") ON TABLE "public"."mm_run_plc" TO "process_manager_dispatcher";  -- the reason
GRANT UPDATE ("msg") ON TABLE "public"."mm_run_plc" TO "process_manager_dispatcher";  -- the reason
GRANT USAGE ON SCHEMA "process_manager" TO "process_manager_dispatcher";  -- the ledger
GRANT SELECT ON TABLE "process_manager"."alembic_version" TO "process_manager_dispatcher";  -- is the ledger at our version?
GRANT SELECT ON TABLE "process_manager"."identity" TO "process_manager_dispatcher";  -- the environment in idempotency tokens
GRANT SELECT ON TABLE "process_manager"."dispatcher" TO "process_manager_dispatcher";  -- who lives?
GRANT INSERT ON TABLE "process_manager"."dispatcher" TO "process_manager_dispatcher";  -- register
GRANT UPDATE ON TABLE "process_manager"."dispatcher" TO "process_manager_dispatcher";  -- number writes, renew the lease, leave, mark dead ones
GRANT SELECT ON TABLE "process_manager"."entry" TO "process_manager_dispatcher";  -- what was intended, sent and learned
GRANT INSERT ON TABLE "process_manager"."entry" TO "process_manager_dispatcher";  -- claim
GRANT UPDATE ON TABLE "process_manager"."entry" TO "process_manager_dispatcher";  -- intend, record, close
GRANT SELECT ON TABLE "process_manager"."event" TO "process_manager_dispatcher";  -- explain
GRANT INSERT ON TABLE "process_manager"."event" TO "process_manager_dispatcher";  -- history; never changed, never deleted
GRANT SELECT ON TABLE "process_manager"."api_budget" TO "process_manager_dispatcher";  -- one budget for all dispatchers of a workspace
GRANT INSERT ON TABLE "process_manager"."api_budget" TO "process_manager_dispatcher";  -- the first dispatcher of a workspace
GRANT UPDATE ON TABLE "process_manager"."api_budget" TO "process_manager_dispatcher";  -- reserve calls, tell others of a 429
GRANT USAGE ON SEQUENCE "process_manager"."dispatcher_dispatcher_id_seq" TO "process_manager_dispatcher";  -- a number for each dispatcher
COMMIT;

-- Runs `pm status`, `pm plan` and `pm explain`. The role has to be there: CREATE ROLE ... LOGIN.
-- Comes after `pm init`, and again after an upgrade. Run it as the owner of table and ledger.
BEGIN;
GRANT USAGE ON SCHEMA "public" TO "process_manager_reader";  -- the view and the control table
GRANT SELECT ON TABLE "public"."mm_run_wait_vw" TO "process_manager_reader";  -- the waiting jobs
GRANT SELECT ON TABLE "public"."mm_run_plc" TO "process_manager_reader";  -- status and age of a row; explain shows all of it
GRANT USAGE ON SCHEMA "process_manager" TO "process_manager_reader";  -- the ledger
GRANT SELECT ON TABLE "process_manager"."alembic_version" TO "process_manager_reader";  -- is the ledger at our version?
GRANT SELECT ON TABLE "process_manager"."identity" TO "process_manager_reader";  -- read on connecting
GRANT SELECT ON TABLE "process_manager"."dispatcher" TO "process_manager_reader";  -- status, explain: who dispatches
GRANT SELECT ON TABLE "process_manager"."entry" TO "process_manager_reader";  -- status, plan, explain
GRANT SELECT ON TABLE "process_manager"."event" TO "process_manager_reader";  -- explain
COMMIT;
