"""Configuration: settings, credentials and where they come from, masking of secrets."""
