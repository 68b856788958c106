"""Fuzzing: each target is given damaged input, case after case, by `python -m tests.fuzzing TARGET`."""
