"""The shared vocabulary: what training and serving must agree on."""
