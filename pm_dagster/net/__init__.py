"""Networking helpers: retry, watchdog, TLS, exception chains, token endpoint. No SDK, no Dagster."""
