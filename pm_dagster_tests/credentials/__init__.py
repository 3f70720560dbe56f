"""Credentials from everywhere, with the unmodified clients, against local servers that behave as the services do."""
