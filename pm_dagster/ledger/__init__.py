"""The Postgres side: the owner's control table and our ledger beside it.

Put here: every SQL statement, connections, migrations. Keep out: decisions. Nothing else imports the driver.
"""
