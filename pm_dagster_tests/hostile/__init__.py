"""Hostile input: whatever the owner's tables, the workspace's answers, the settings and the terminal may hold."""
