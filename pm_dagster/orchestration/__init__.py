"""Process Manager in Dagster: assets, ops, automation and resources.

Put here: what Dagster has to be told. Keep out: every decision about a row (``core``) and every call to the outside
(``postgres``, ``workspace``). Environment variables are named in ``definitions.py`` alone.
"""
