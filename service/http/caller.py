"""Who makes a request, for what is known only after its route has read it: the options of a call.

`service/http/auth.py` checks the key and the rate of the call itself, and puts a `Caller` into the request.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

from starlette.types import Scope as Asgi

from segue.errors import SegueError
from service.http.keys import Key, Scope
from service.http.limits import RateLimit

_IN_REQUEST: Final = "segue.caller"

# What a call counts for in the rates of its key and its session, where that is more than one request. Measured: a list
# with reasons takes about as long as 13 lists, as it ranks again with plays left out.
EXPLANATION_COST: Final = 13
CALL_COSTS: Final[dict[str, int]] = {"GET /map": 5}  # up to 800 kB


class MissingScope(SegueError):
    """The key may make the call, but not with these options."""

    http_status: ClassVar[int] = 403
    title: ClassVar[str] = "Forbidden"

    def __init__(self, text: str, scope: Scope) -> None:
        super().__init__(text)
        self.scope = scope


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request; without a key where the service has none. `limits` are the rates that it counts in."""

    key: Key | None = None
    limits: tuple[tuple[RateLimit, str], ...] = ()

    def require(self, scope: Scope, what: str) -> None:
        """Raise MissingScope if the key lacks the scope that `what` needs."""
        if self.key is not None and not self.key.allows(scope):
            has = " and ".join(sorted(self.key.scopes))
            raise MissingScope(
                f"the key {self.key.name!r} has the scope {has}, and {what} needs {scope} as well", scope
            )

    def charge(self, requests: int) -> None:
        """Count so many requests more. None is refused for it now; those that follow wait."""
        for limit, name in self.limits:
            limit.charge(name, requests)


_ANYBODY: Final = Caller()


def note_caller(request: Asgi, caller: Caller) -> None:
    """Keep who makes a request, for its route."""
    request[_IN_REQUEST] = caller


def caller_of(request: Asgi) -> Caller:
    """Who makes a request."""
    found: Caller = request.get(_IN_REQUEST, _ANYBODY)
    return found
