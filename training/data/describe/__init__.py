"""The figures of a dataset that a person must know before training, its warnings, and their HTML page."""
