"""Offline evaluation: metrics of models, their comparison, and searches for options."""
