"""Which names a service without keys answers to, so that no page of another site can speak to it.

A service on loopback is out of others' reach, but not of the pages that this machine's browser shows: a site whose name
is made to resolve to 127.0.0.1 (DNS rebinding) becomes the same origin as the service. The browser then still sends the
site's own name in `Host`, by which it is told. Knows nothing of keys: a service that asks for one is safe without this.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import problem_response
from service.settings import Settings

_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::[0-9]{1,5})?")
_MOST_REMEMBERED: Final = 64
_SHOWN: Final = 80
_OF_BROWSERS: Final = frozenset({b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest", b"origin"})
_OWN_SITES: Final = frozenset({b"same-origin", b"same-site", b"none"})  # `none`: the user asks, as by a bookmark
_PAGES: Final = frozenset({"/", "/docs", "/ops"})
_READING: Final = frozenset({"GET", "HEAD"})
_FOREIGN: Final = problem_response(
    403,
    "a page of another site made this request: use the service's own pages, or name the page's origin in "
    "SEGUE_CORS_ORIGINS",
)


def is_needed(settings: Settings) -> bool:
    """Whether names are checked: where they are set, and where nobody else looks at who asks."""
    return bool(settings.allowed_hosts) or (settings.api_keys is None and not settings.open)


class KnownHosts:
    """An ASGI layer that refuses requests for names which are neither this machine's own nor allowed."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in (*settings.allowed_hosts, settings.host))
        self._origins = frozenset(settings.cors_origins)
        self._known: set[bytes] = set()  # headers that have passed: clients send the same one again and again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            sent = next((value for name, value in scope["headers"] if name == b"host"), None)
            if sent is None:  # HTTP/1.0 alone may leave it out, see service/http/protocol.py; probes of health do
                if not scope["path"].startswith("/health/"):
                    await problem_response(421, "the Host header is missing: send the name of this service")(
                        scope, receive, send
                    )
                    return
            elif not (sent in self._known or self._passes(sent)):
                await _misdirected(sent)(scope, receive, send)
                return
            if self._is_foreign(scope):
                await _FOREIGN(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether a page of another site asks, which is neither allowed to nor links to a page of the service.

        Browsers say so (https://www.w3.org/TR/fetch-metadata/, 2025). Such a page could not read the answer, but the
        work would be done.
        """
        sent: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in _OF_BROWSERS:
                sent[name] = value if name not in sent else b""
        site = sent.get(b"sec-fetch-site")
        if site is None or site in _OWN_SITES:
            return False
        if "*" in self._origins or sent.get(b"origin", b"").decode("latin-1") in self._origins:
            return False
        is_link = sent.get(b"sec-fetch-mode") == b"navigate" and sent.get(b"sec-fetch-dest") == b"document"
        return not (is_link and scope["method"] in _READING and scope["path"] in _PAGES)

    def _passes(self, header: bytes) -> bool:
        if not names(header, self._names):
            return False
        if len(self._known) < _MOST_REMEMBERED:
            self._known.add(header)
        return True


def names(header: bytes, allowed: Iterable[str] = ()) -> bool:
    """Whether a Host header names this machine's loopback, or one of `allowed` (lower case), with or without a port."""
    found = _HOST.fullmatch(header.decode("latin-1").lower())
    if found is None:
        return False
    name = (found[1] or found[2]).removesuffix(".")
    # `localhost` and what ends with it are no names of the DNS (RFC 6761), so nobody can have them resolve elsewhere.
    return name in allowed or name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _misdirected(sent: bytes) -> ASGIApp:
    return problem_response(
        421,
        f"the Host header is {sent.decode('latin-1')[:_SHOWN]!a}, which is no name of this service: ask localhost, or "
        "add the name to SEGUE_ALLOWED_HOSTS",
    )
