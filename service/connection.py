"""One connection of a client: what it may send, how long it may take over it, and whether it is let in.

A request that is refused because the service is full is answered here, by ready bytes, before uvicorn makes a task for
it and before its body has come: under overload this is what most requests meet, so it has to cost little.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.door import REFUSAL, Door
from service.problems import problem_response
from service.request_head import BoundedHead, ReadyAnswer

# What an operator needs most when the service is full: never refused, never counted.
_ALWAYS: Final = (b"/health/", b"/metrics", b"/releases", b"/operations", b"/ops", b"/web/ops")
_STAYS: Final = ReadyAnswer(REFUSAL)
_GOES: Final = ReadyAnswer(REFUSAL, closing=True)


class Connection(BoundedHead):
    """uvicorn's protocol with bounded heads, a door, and a deadline for what a client sends.

    The lifespan's state holds the `door`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._door: Door = self.app_state["door"]
        self._deadline: asyncio.TimerHandle | None = None  # for what the client sends
        self._stalled: asyncio.TimerHandle | None = None  # for what it does not read
        self._whole = True  # nothing of a request has come, or all of it
        self._counted = False  # whether the request that is being read counts at the door
        self._refused = False  # whether the request that is being read has been answered here

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there. It has to say something in time."""
        super().connection_made(transport)
        if len(self.connections) > self._door.most_connections:
            self._door.on_refusal()
            self._end(REFUSAL)
        else:
            self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._expect_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes, whatever they are."""
        super().data_received(data)
        if self._whole:
            if self._deadline is not None:
                self._expect_no_more()
        elif self._deadline is None:
            self._expect_more()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._whole = self._refused = False

    def on_headers_complete(self) -> None:
        """A request's head is there: let it in, or refuse it."""
        self._counted = not self.url.startswith(_ALWAYS)
        if self._counted and self._door.is_full():
            self._door.on_refusal()
            if self._may_answer_here():
                self._refuse_here()
            else:
                self._hand_to(REFUSAL)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there, whole. Only now it counts: a client that sends slowly takes nobody's place."""
        self._whole = True
        if self._refused:
            return
        super().on_message_complete()
        if not self.pipeline:
            self._enter(self.cycle)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not cycle.more_body:  # it came while the one before was being answered
            self._counted = app is self.app
            self._enter(cycle)
        super()._start_asgi_task(cycle, app)

    def _enter(self, cycle: RequestResponseCycle) -> None:
        if self._counted and not cycle.response_complete:
            self._door.enter(cycle.scope)

    def _hand_to(self, app: Any) -> None:
        self._counted = False
        super()._hand_to(app)

    def _may_answer_here(self) -> bool:
        """Whether the answer is next in line, and is one with a body."""
        in_line = self.cycle is None or self.cycle.response_complete
        return in_line and self.parser.get_method() != b"HEAD"

    def _refuse_here(self) -> None:
        self._in_head = False
        self._refused = True
        self.server_state.total_requests += 1
        # Whoever waits for `100 Continue` may keep its body to itself, so what comes next could not be told.
        stays = self.parser.should_keep_alive() and not self.expect_100_continue
        self.transport.write((_STAYS if stays else _GOES).after(self.server_state.default_headers))
        if not stays:
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come for a while: close, also on a client that does not read."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self._door.read_timeout_s, self.transport.abort)

    def shutdown(self) -> None:
        """The service is to end."""
        self._door.closing.set()
        super().shutdown()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._door.read_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _expect_more(self) -> None:
        self._deadline = self.loop.call_later(self._door.read_timeout_s, self._too_slow)

    def _expect_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        in_line = self.cycle is None or self.cycle.response_complete or not self.cycle.response_started
        if self._whole or not in_line:
            self.transport.close()
        else:
            seconds = self._door.read_timeout_s
            self._end(problem_response(408, f"the request did not come whole within {seconds:g} s: send it faster"))
