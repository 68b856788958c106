"""Damaged bytes on real connections to a real service; in this process, tests/test_fuzzing.py sends many more."""

import contextlib
import random
import re
import socket
from collections import Counter

import httpx
import pytest

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from tests.fuzzing.wire import UNSPOKEN, sent, statuses


def received(address: httpx.URL, content: bytes) -> bytes:
    """What a service answers to these bytes, after which the client says no more. Raises TimeoutError if it hangs."""
    answer = b""
    connection = socket.create_connection((address.host, address.port or 0), timeout=10)
    with connection as client, contextlib.suppress(ConnectionError):
        client.sendall(content)
        with contextlib.suppress(OSError):  # of a connection that the service has closed by now
            client.shutdown(socket.SHUT_WR)
        while piece := client.recv(65_536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    "cases",
    [
        200,
        pytest.param(2000, marks=pytest.mark.slow),
        pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_whatever_bytes_come_the_service_goes_on(
    running: httpx.Client, cases: int, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[int | None] = Counter()
    for number in range(cases):
        content = sent(random.Random(f"live/{number}"))
        found = statuses(answer) if (answer := received(running.base_url, content)) else []
        assert all(status < 500 or status in UNSPOKEN for status in found), (number, content, answer)
        outcomes[found[0] if found else None] += 1
    assert running.get("/health/ready").status_code == 200
    assert re.findall(r'status="5\d\d"', running.get("/metrics").text) == []
    assert len(outcomes) >= 3, outcomes
    with capsys.disabled():
        print(f"\n  {cases:,} connections: {dict(outcomes.most_common())}")  # noqa: T201 (the counts are the result)
