"""The paper's own figures: Seshadri, Shashaani and Knees, RecSys 2024, https://doi.org/10.1145/3640457.3688188."""

from typing import Final

METRICS: Final = ("HR@1", "HR@5", "HR@10", "HR@20", "MAP@10")
# The columns of Table 1 as systems are named here: (family, its versions).
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "sasrec": ("sasrec", "sasrec+nce"),
    "bert4rec": ("bert4rec", "bert4rec+nce"),
    "gru4rec": ("gru4rec", "gru4rec+nce"),
    "caser": ("caser", "caser+nce"),
    "wrmf": ("wrmf", "wrmf-bl", "wrmf-nr"),
    "bpr": ("bpr", "bpr-bl", "bpr-nr"),
}
SYSTEMS: Final = tuple(system for versions in FAMILIES.values() for system in versions)

_ROWS: Final = {
    "MSSD": """
        .377 .410 .204 .355 .210 .235 .223 .251 .203 .207 .211 .208 .213 .216
        .615 .628 .450 .608 .398 .431 .412 .455 .400 .406 .411 .406 .413 .421
        .696 .706 .553 .693 .491 .534 .518 .530 .488 .498 .505 .502 .510 .517
        .767 .774 .648 .767 .600 .627 .616 .649 .597 .603 .608 .605 .609 .612
        .397 .417 .185 .369 .176 .193 .195 .221 .149 .156 .164 .160 .168 .173""",
    "LFM-2B": """
        .190 .221 .101 .117 .096 .102 .102 .112 .097 .098 .102 .098 .105 .107
        .371 .400 .227 .248 .203 .221 .197 .208 .138 .142 .147 .143 .152 .169
        .452 .477 .292 .320 .273 .291 .281 .302 .269 .273 .279 .276 .286 .294
        .532 .553 .366 .394 .311 .342 .326 .354 .305 .311 .316 .314 .324 .348
        .188 .219 .098 .110 .078 .085 .081 .088 .062 .065 .067 .066 .072 .078""",
    "LFM-1K": """
        .152 .181 .069 .086 .048 .059 .052 .071 .042 .044 .047 .043 .050 .052
        .301 .330 .207 .230 .182 .200 .188 .198 .139 .146 .177 .150 .153 .159
        .392 .421 .299 .320 .261 .289 .269 .293 .270 .285 .294 .292 .298 .301
        .478 .491 .413 .433 .388 .397 .390 .404 .346 .368 .375 .369 .374 .376
        .092 .107 .049 .064 .034 .042 .037 .040 .028 .031 .034 .032 .036 .038""",
}

# dataset: (system, metric): value. Table 1.
TABLE_1: Final[dict[str, dict[tuple[str, str], float]]] = {
    dataset: {
        (system, metric): float(value)
        for metric, line in zip(METRICS, text.strip().splitlines(), strict=True)
        for system, value in zip(SYSTEMS, line.split(), strict=True)
    }
    for dataset, text in _ROWS.items()
}

# dataset: system: MRR@10 on skipped targets, lower is better. Table 2.
TABLE_2: Final[dict[str, dict[str, float]]] = {
    "MSSD": {"sasrec": 0.960, "sasrec+nce": 0.950, "bert4rec": 0.840, "bert4rec+nce": 0.950},
    "LFM-2B": {"sasrec": 0.969, "sasrec+nce": 0.911, "bert4rec": 0.953, "bert4rec+nce": 0.950},
    "LFM-1K": {"sasrec": 0.731, "sasrec+nce": 0.731, "bert4rec": 0.540, "bert4rec+nce": 0.460},
}


def dataset_of(source: str) -> str | None:
    """The paper's data set that a log of this kind is, None where it is none of them.

    The `events` format is anybody's: it stands beside MSSD, whose extract comes in it.
    """
    return {"mssd": "MSSD", "events": "MSSD", "lfm1k": "LFM-1K", "lfm2b": "LFM-2B"}.get(source)
