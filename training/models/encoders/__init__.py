"""Session encoders: a window of plays in, a query vector in the item space out."""
