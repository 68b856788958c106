"""Recommendations of a running service for an offline evaluation: `segue evaluate --url`."""

import uuid
from typing import Any, Self

import httpx
import numpy as np

from segue.catalogue import PAD_ROW, Catalogue
from segue.client_answers import headers_for
from segue.errors import InputError, SegueError
from segue.ranking_metrics import LIST_LENGTH
from segue.release import Release
from segue.sessions import ALLOW_REPEATS, Outcome, Play, RepeatPolicy, events_of
from segue.window import Sessions
from training.evaluation.evaluate import RankedList


class HttpRecommender:
    """Requests recommendations from a running service, after it has sent the plays of each session as events."""

    def __init__(self, url: str, dataset: Catalogue, release: Release, key: str | None = None) -> None:
        """Create the HTTP client for the service at `url`.

        `dataset` converts rows to track ids. `release` is the one to evaluate: every request names it, so that neither
        a swap nor an A/B test can give lists of another release. `key` is an API key with the scope `admin`, which the
        service requires to delete the evaluation sessions. Raises InputError for an invalid address or key.
        """
        self._client = httpx.Client(base_url=url, timeout=30.0, headers=headers_for(url, key))
        self._url = url
        self._dataset = dataset
        self._release = release

    def __enter__(self) -> Self:
        """Return the recommender itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the HTTP client."""
        self._client.close()

    def serves(self) -> str:
        """Return the name of the active release of the service."""
        return str(self._ask("GET", "/releases/current").json()["name"])

    def lists(self, sessions: Sessions, repeat: RepeatPolicy = ALLOW_REPEATS, caution: float = 0.0) -> list[RankedList]:
        """Ask the service for the top LIST_LENGTH tracks of each session, and delete each session afterwards."""
        return [self._list(sessions, i, repeat, caution) for i in range(len(sessions))]

    def _list(self, sessions: Sessions, i: int, repeat: RepeatPolicy, caution: float) -> RankedList:
        span = slice(sessions.offsets[i], sessions.offsets[i + 1])
        plays = [
            Play(self._dataset.track_id(row), Outcome.SKIPPED if skipped else Outcome.PLAYED)
            for row, skipped in zip(sessions.rows[span].tolist(), sessions.skipped[span].tolist(), strict=True)
        ]
        session = f"evaluation-{uuid.uuid4().hex}"
        events = [event.model_dump(mode="json", exclude_none=True) for event in events_of(plays)]
        try:
            for start in range(0, len(events), 100):
                self._ask("POST", f"/sessions/{session}/events", json={"events": events[start : start + 100]})
            params = {
                "session_id": session,
                "k": LIST_LENGTH,
                "repeat": repeat.text,
                "caution": caution,
                "release": self._release.name,
            }
            answer = self._ask("GET", "/recommendations", params=params).json()
        finally:
            self._ask("DELETE", f"/sessions/{session}")
        has_known = bool((self._release.catalogue.rows([one.track_id for one in plays]) != PAD_ROW).any())
        if answer["source"] == "popularity" and has_known:
            raise SegueError(
                f"--url {self._url}: it answered with popular tracks, because its model or Redis failed for a moment: "
                "see its log, and evaluate again"
            )
        items = answer["items"]
        rows = self._release.catalogue.rows([item["track_id"] for item in items])
        return rows, np.array([item["score"] for item in items], dtype=np.float32)

    def _ask(self, method: str, path: str, **rest: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **rest)
        except httpx.HTTPError as error:
            raise InputError(f"--url {self._url}: {method} {path} got no answer ({error}); is it serving?") from error
        if answer.is_error:
            raise SegueError(f"--url {self._url}: {method} {path} answered {answer.status_code}: {answer.text[:200]}")
        return answer
