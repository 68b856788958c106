"""Rankers without an encoder, which every encoder has to beat."""
