"""Nearest tracks to a query vector: exact, FAISS on CPU, FAISS on GPU."""
