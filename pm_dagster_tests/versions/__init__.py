"""Tests with other versions of databricks-sdk than the locked one (``make test-versions``)."""
