"""Make datasets of listening logs."""
