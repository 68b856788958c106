"""What the service is measured against in the same run: less than it does, and what one would write without it.

constant     FastAPI answering a constant
one_read     the same plus one Redis read, of a session's plays
naive        FastAPI, the session from Redis, the eager torch encoder, scores of all tracks, top k
"""

import os
from typing import Annotated, Any

from fastapi import FastAPI, Query
from redis.asyncio import Redis

from service.sessions.store import keys_of


def constant() -> FastAPI:
    """Nothing but FastAPI."""
    app = FastAPI()

    @app.get("/")
    async def answer() -> dict[str, str]:
        return {"status": "well"}

    return app


def one_read() -> FastAPI:
    """FastAPI and one round trip."""
    app = FastAPI()
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)

    @app.get("/recommendations")
    async def answer(session_id: str) -> dict[str, int]:
        return {"plays": len(await redis.lrange(keys_of(session_id)[0], 0, -1))}

    return app


def naive() -> FastAPI:
    """What one would write first. The encoder has the release's shape and item embeddings, otherwise new weights."""
    from pathlib import Path

    import torch

    from segue.catalogue import PAD_ROW
    from segue.release import open_release
    from training.models.encoders.sasrec import SasRec
    from training.options import SasRecOptions

    torch.set_num_threads(1)
    release = open_release(Path(os.environ["RELEASE"]))
    options = SasRecOptions.model_validate(release.manifest.options)
    encoder = SasRec(release.manifest.tracks + 1, options)
    encoder.item_embeddings.weight.data = torch.from_numpy(release.item_embeddings)
    encoder.eval()
    ids = release.catalogue.track_ids
    row_of = {track_id: row for row, track_id in enumerate(ids, start=1)}
    app = FastAPI()
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)

    def answer(plays: list[tuple[int, bool]], k: int) -> list[dict[str, Any]]:
        rows = torch.full((1, options.window), PAD_ROW)
        skipped = torch.zeros((1, options.window), dtype=torch.bool)
        for column, (row, skip) in enumerate(reversed(plays[-options.window :]), start=1):
            rows[0, -column], skipped[0, -column] = row, skip
        with torch.no_grad():
            scores = encoder.query(rows, skipped)[0] @ encoder.item_embeddings.weight.T
            scores[[PAD_ROW, *(row for row, _ in plays)]] = -torch.inf
            best = scores.topk(k)
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"rank": i, "track_id": ids[row - 1], "score": s} for i, (row, s) in enumerate(found, start=1)]

    @app.get("/recommendations")
    async def recommendations(session_id: str, k: Annotated[int, Query()] = 20) -> dict[str, Any]:
        lines = await redis.lrange(keys_of(session_id)[0], 0, -1)
        plays = [(row_of[str(line).split("\t", 3)[3]], str(line)[0] == "S") for line in lines]
        return {"session_id": session_id, "items": answer(plays, k)}

    return app
