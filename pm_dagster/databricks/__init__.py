"""The Databricks side: the official SDK behind the DatabricksRuns port.

Put here: authentication, one HTTP attempt, and what its outcome means. Keep out: repeating, pacing, deciding.
Nothing else imports the SDK or requests.
"""
