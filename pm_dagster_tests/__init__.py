"""The tests of `pm_dagster`; one folder per part, fixtures in the nearest conftest.py."""
