"""Releases that are served: loading, swapping, ranking, explanations, attribution."""
