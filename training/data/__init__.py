"""Datasets: files of sessions, splits, batches, and synthetic sessions."""
