"""What Redis keeps is held against what the service promises."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from segue.errors import BadOption
from service.sessions.redis_server import DurabilityCheck, check_durability
from service.settings import Durability

WEAK, SECOND, ALWAYS = (
    {"appendonly": "no", "appendfsync": "always"},  # without the file, its setting means nothing
    {"appendonly": "yes", "appendfsync": "everysec"},
    {"appendonly": "yes", "appendfsync": "always"},
)
UNKNOWN = {"appendonly": "yes", "appendfsync": "sometimes"}


@pytest.mark.parametrize(
    ("promised", "found"),
    [("memory", WEAK), ("every-second", SECOND), ("every-second", ALWAYS), ("always", ALWAYS)],
)
def test_enough_is_enough(promised: Durability, found: dict[str, str]) -> None:
    check_durability(promised, [found, ALWAYS])


@pytest.mark.parametrize(
    ("promised", "found"), [("every-second", WEAK), ("always", WEAK), ("always", SECOND), ("always", UNKNOWN)]
)
def test_less_is_refused_in_one_line_that_says_what_to_do(promised: Durability, found: dict[str, str]) -> None:
    with pytest.raises(BadOption, match=f"durability is {promised}, but Redis has appendonly") as caught:
        check_durability(promised, [ALWAYS, found])
    assert "\n" not in str(caught.value)
    assert "SEGUE_DURABILITY" in str(caught.value)


def test_a_server_that_names_no_setting_is_believed() -> None:
    """As some that are hosted do."""

    class Silent(Redis):
        async def ping(self, *_: Any, **__: Any) -> bool:
            return True

        async def info(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {}

        async def config_get(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
            return {}

    for promised in ("memory", "every-second", "always"):
        with capture_logs() as lines:
            asyncio.run(DurabilityCheck(Silent(), promised).check())
        assert {line["event"] for line in lines} == {"durability_not_verified"}
