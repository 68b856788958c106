"""What Redis keeps is held against what the service promises."""

import pytest

from segue.errors import BadOption
from service.durability import refuse_weaker
from service.settings import Durability

WEAK, SECOND, ALWAYS = (
    {"appendonly": "no", "appendfsync": "always"},  # without the file, its setting means nothing
    {"appendonly": "yes", "appendfsync": "everysec"},
    {"appendonly": "yes", "appendfsync": "always"},
)


@pytest.mark.parametrize(
    ("promised", "found"),
    [("memory", WEAK), ("every-second", SECOND), ("every-second", ALWAYS), ("always", ALWAYS)],
)
def test_enough_is_enough(promised: Durability, found: dict[str, str]) -> None:
    refuse_weaker(promised, [found, ALWAYS])


@pytest.mark.parametrize(("promised", "found"), [("every-second", WEAK), ("always", WEAK), ("always", SECOND)])
def test_less_is_refused_in_one_line_that_says_what_to_do(promised: Durability, found: dict[str, str]) -> None:
    with pytest.raises(BadOption, match=f"durability is {promised}, and Redis has appendonly") as caught:
        refuse_weaker(promised, [ALWAYS, found])
    assert "\n" not in str(caught.value)
    assert "SEGUE_DURABILITY" in str(caught.value)
