"""From listening logs to releases: data, encoders, losses, evaluation."""
