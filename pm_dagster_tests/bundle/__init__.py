"""The Databricks bundle: what its files say, and what deploying and running it does."""
