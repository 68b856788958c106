"""Step `parity`: the GPU index gives what the CPU index of the same file gives, and what exact search gives."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.gpu.sizes import Sizes
from benchmarks.gpu.step_errors import StepFailed
from benchmarks.index_search import clustered
from index import faiss_cpu, faiss_gpu
from index.exact import ExactIndex, recall_at_k
from index.faiss_cpu import FaissIndex, Kind
from segue.arrays import Float32
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW
from segue.recommend import EncoderRanker, PopularityRanker, Ranked, Recommender
from segue.sessions import NEVER_REPEAT
from segue.window import Sessions, Windows

ALIKE: Final = 0.999  # share of tracks that must be the same; rounding moves those at the end of a list
MOST_ON_A_CARD: Final = 2048
_THREADS: Final = 8
_COPIES: Final = 8  # of each track, where tracks tie

Check = tuple[str, bool, str]  # what was checked, whether it holds, what was found


def measure(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Check every kind. Raises StepFailed naming each check that does not hold."""
    checks: list[dict[str, Any]] = []
    for kind in faiss_gpu.KINDS:
        for name, holds, found in _of_kind(kind, sizes, folder):
            checks.append({"kind": kind, "check": name, "holds": bool(holds), "found": found})
            print(f"{kind}: {name}: {'holds' if holds else 'DOES NOT HOLD'} ({found})", flush=True)
    wrong = [f"{check['kind']}: {check['check']} ({check['found']})" for check in checks if not check["holds"]]
    if wrong:
        raise StepFailed(f"{len(wrong)} of {len(checks)} checks do not hold: {'; '.join(wrong)}")
    return {"checks": checks, "held": len(checks)}


def _of_kind(kind: Kind, sizes: Sizes, folder: Path) -> Iterator[Check]:
    embeddings, queries = clustered(sizes.parity_tracks, sizes.dimension, 300, np.random.default_rng(3))
    on_cpu, index = twins(kind, embeddings, sizes, folder)
    yield _as_the_cpu(on_cpu, index, queries, embeddings)
    yield _thorough(on_cpu, index, queries, embeddings)
    yield _one_at_a_time(index, queries, embeddings)
    yield _not_finite(index, queries)
    yield _threads("several threads ask one index", [index] * _THREADS, queries, embeddings)
    _, other = twins(kind, embeddings, sizes, folder)
    yield _threads("several threads ask two indexes", [index, other] * (_THREADS // 2), queries, embeddings)
    yield _exclusions(index, queries, embeddings)
    yield from _k_at_the_limits(kind, sizes, folder)
    yield _ties(kind, sizes, folder)


def twins(kind: Kind, embeddings: Float32, sizes: Sizes, folder: Path) -> tuple[FaissIndex, FaissIndex]:
    """The index of one file on the CPU and on the device."""
    built = faiss_cpu.build(embeddings, kind, seed=1)
    file = folder / f"parity-{kind}.faiss"
    file.write_bytes(built.to_bytes())
    on_cpu = faiss_cpu.load(file, kind, built.parameters, embeddings)
    return on_cpu, sizes.twin.load(file, kind, built.parameters, embeddings)


def with_nprobe(index: FaissIndex, nprobe: int | None) -> FaissIndex:
    """The same index that visits so many lists, where it has lists."""
    if index.parameters.nlist is None:
        return index
    return index.tuned(index.parameters.model_copy(update={"nprobe": nprobe or index.parameters.nlist}))


def _alike(found: Ranked, expected: Ranked, queries: Float32, embeddings: Float32) -> tuple[bool, str]:
    share = recall_at_k(found.rows, expected, queries, embeddings)
    return share >= ALIKE, f"{share:.5f} of the tracks"


def _as_the_cpu(on_cpu: FaissIndex, index: FaissIndex, queries: Float32, embeddings: Float32) -> Check:
    return "tracks of the CPU index", *_alike(
        index.search(queries, 20), on_cpu.search(queries, 20), queries, embeddings
    )


def _thorough(on_cpu: FaissIndex, index: FaissIndex, queries: Float32, embeddings: Float32) -> Check:
    """All lists visited: flat kinds and `ivf` must then be exact, codes as good as on the CPU."""
    expected = ExactIndex(embeddings).search(queries, 20)
    shares = [
        recall_at_k(with_nprobe(one, None).search(queries, 20).rows, expected, queries, embeddings)
        for one in (on_cpu, index)
    ]
    holds = shares[1] >= min(ALIKE, shares[0] - 0.001)
    return "tracks of exact search, all lists visited", holds, f"{shares[1]:.5f}, the CPU {shares[0]:.5f}"


def _one_at_a_time(index: FaissIndex, queries: Float32, embeddings: Float32) -> Check:
    together = index.search(queries[:50], 20)
    alone = [index.search(queries[i : i + 1], 20) for i in range(50)]
    one = Ranked(np.concatenate([a.rows for a in alone]), np.concatenate([a.scores for a in alone]))
    return "one query at a time as in a batch", *_alike(one, together, queries[:50], embeddings)


def _not_finite(index: FaissIndex, queries: Float32) -> Check:
    broken = queries[:3].copy()
    broken[1, 0] = np.nan
    found, sound = index.search(broken, 5), index.search(queries[[0, 2]], 5)
    holds = bool((found.rows[1] == PAD_ROW).all() and (found.rows[[0, 2]] == sound.rows).all())
    empty = index.search(queries[:0], 5).rows.shape == (0, 5) and index.search(queries[:2], 0).rows.shape == (2, 0)
    return "a query that is not finite, and none at all", holds and empty, "only it gets no tracks"


def _threads(name: str, indexes: list[FaissIndex], queries: Float32, embeddings: Float32) -> Check:
    """Each thread has a part of the queries, several times."""
    parts = np.array_split(np.arange(len(queries)), len(indexes))
    expected = [indexes[0].search(queries[part], 20) for part in parts]
    found: dict[int, list[Ranked]] = {}
    errors: list[str] = []

    def ask(number: int) -> None:
        try:
            found[number] = [indexes[number].search(queries[parts[number]], 20) for _ in range(5)]
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(indexes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        return name, False, errors[0]
    least = min(
        recall_at_k(one.rows, expected[number], queries[parts[number]], embeddings)
        for number in range(len(indexes))
        for one in found[number]
    )
    return name, least >= ALIKE, f"{least:.5f} of the tracks in the worst answer"


class _Queries:
    """An encoder that returns given queries."""

    def __init__(self, queries: Float32) -> None:
        self.queries = queries

    def encode(self, windows: Windows) -> Float32:
        """Return the first queries, one per window. [batch, dimension] float32."""
        return self.queries[: len(windows.tracks)]


def _exclusions(index: FaissIndex, queries: Float32, embeddings: Float32) -> Check:
    """What a session has heard, and what it excludes, is missing and replaced by what follows."""
    queries = queries[:20]
    exact = ExactIndex(embeddings)
    best = exact.search(queries, 120).rows
    ranker = EncoderRanker(_Queries(queries), with_nprobe(index, None), exact, embeddings)
    recommender = Recommender(ranker, PopularityRanker(np.zeros(len(embeddings), dtype=np.int64)), 20)
    heard = Sessions(best[:, :20].reshape(-1), np.zeros(400, dtype=np.bool_), np.arange(0, 401, 20))
    answers = recommender.recommend(heard, 20, [row[20:60] for row in best], repeat=NEVER_REPEAT)
    rows = [answer.rows for answer in answers]
    share = float(np.mean([len(np.intersect1d(row, best[i, 60:80])) / 20 for i, row in enumerate(rows)]))
    barred = sum(len(np.intersect1d(row, best[i, :60])) for i, row in enumerate(rows))
    full = all(len(row) == 20 for row in rows)
    return (
        "60 tracks excluded",
        full and not barred and share >= 0.98,
        f"{barred} of them given, {share:.4f} of the next",
    )


def _k_at_the_limits(kind: Kind, sizes: Sizes, folder: Path) -> Iterator[Check]:
    few, queries = clustered(100, sizes.dimension, 5, np.random.default_rng(4))
    on_cpu, index = (with_nprobe(one, None) for one in twins(kind, few, sizes, folder))
    for k in (1, 99, 100, 110):
        found, expected = index.search(queries, k), on_cpu.search(queries, k)
        right = int((found.rows != PAD_ROW).sum()) == 5 * min(k, 100) and found.rows.shape == (5, k)
        yield (
            f"k {k} of 100 tracks",
            right and (found.rows == expected.rows).all(),
            "those of the CPU index, then padding",
        )
    many, queries = clustered(2 * MOST_ON_A_CARD, sizes.dimension, 3, np.random.default_rng(5))
    _, index = twins(kind, many, sizes, folder)
    index = with_nprobe(index, None)
    for k in (MOST_ON_A_CARD - 1, MOST_ON_A_CARD, MOST_ON_A_CARD + 1, 2 * MOST_ON_A_CARD):
        counts = (index.search(queries, k).rows != PAD_ROW).sum(axis=1)
        most = k if sizes.dry_run else min(k, MOST_ON_A_CARD)
        yield f"k {k:,}: a card gives at most {MOST_ON_A_CARD:,}", bool((counts == most).all()), f"{counts.tolist()}"


def _ties(kind: Kind, sizes: Sizes, folder: Path) -> Check:
    """Tracks that are alike: their scores are those of exact search, and the lower row comes first."""
    different, queries = clustered(500, sizes.dimension, 50, np.random.default_rng(6))
    tracks = np.tile(different[FIRST_TRACK_ROW:], (_COPIES, 1))
    embeddings = np.concatenate([different[:1], tracks])
    _, index = twins(kind, embeddings, sizes, folder)
    found, expected = with_nprobe(index, None).search(queries, 20), ExactIndex(embeddings).search(queries, 20)
    scores = bool(np.allclose(found.scores, expected.scores, rtol=1e-5))
    ties = found.scores[:, 1:] == found.scores[:, :-1]
    rising = bool((found.rows[:, 1:] > found.rows[:, :-1])[ties].all())
    distinct = all(len(np.unique(row)) == 20 for row in found.rows)
    return "ties", scores and rising and distinct, f"{int(ties.sum())} ties, the lower row first"
