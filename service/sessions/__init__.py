"""Listeners' sessions: Redis, and the event log."""
