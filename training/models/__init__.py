"""Models: session encoders, and baselines without an encoder."""
