"""What a trained model is called beside others: `sasrec`, `sasrec+nce`, `wrmf-nr`, `sasrec+nce+published-pairing`.

The name says the loss and whatever of the paper's open questions was answered differently; it comes from the options
that were trained with, so that a table cannot call a model what it is not.
"""

from collections.abc import Mapping
from typing import Any


def system_name(model: str, options: Mapping[str, Any]) -> str:
    """The name of a model trained with these options (those of its release's manifest)."""
    parts = [model]
    if options.get("beta"):
        parts.append("nce")
        if options.get("pairing") == "published":
            parts.append("published-pairing")
    if options.get("objective") == "next-played":
        parts.append("next-played")
    if options.get("plays") == "played":
        parts.append("played-only")
    return "+".join(parts)
