"""What a step raises when it cannot be done."""


class StepFailed(Exception):
    """A step has no result; the text says why in one line."""
