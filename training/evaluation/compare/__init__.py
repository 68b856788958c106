"""Comparison of results of `segue evaluate --output`: statistics, the paper's tables, and a page with charts."""
