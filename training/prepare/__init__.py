"""From listening logs to datasets."""
