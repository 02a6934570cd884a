"""Tells every open page what has changed: soon, seldom, and only while somebody looks.

All of it runs in the loop of the server, apart from what is handed to workers; `_on_change` may be
called in any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from logging import Logger
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from .faults import report
from .patch import State, merge_patch, sendable
from .requests import Wish
from .views import Painter, View, shows
from .workers import Workers

if TYPE_CHECKING:
    from ..engine.monitor.fleet import Fleet

T = TypeVar("T")

MOST = 4  # messages to one page within WINDOW
WINDOW = 1.0  # seconds
ALIVE = 5.0  # seconds after which a page hears at least that the server is there
WANT = 5.0  # seconds after which the fleet hears again that somebody looks
# A view is left as it is for so many times as long as it took to make, up to so many seconds.
REST, LONGEST_REST = 4.0, 10.0
CLOSING = 5.0  # seconds that the fleet gets to let go of its clusters
# Threads: for what takes seconds, for what must work even then, and for pictures.
SLOW, QUICK, PAINTERS = 8, 8, 4


class Handle(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What of an event loop is used here."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], None], /) -> Handle: ...
    def call_soon_threadsafe(self, callback: Callable[[], None], /) -> Any: ...


class Flushed(Protocol):
    """Done when a message is on its way, and not only kept for a slow reader."""

    def add_done_callback(self, call: Callable[[Any], None], /) -> Any: ...


@attrs.define(eq=False)
class Page:
    """One page with a websocket: what it wants, and what it has.

    `write` sends a message, `shut` ends the connection with a code and a reason.
    """

    write: Callable[[str], Flushed]
    shut: Callable[[int, str], None]
    wish: Wish = attrs.field(factory=Wish)
    spoke: int = 0  # the higher, the later it has said what it wants
    has: State | None = None
    generation: int = 0  # of the state that it has, or that it was found not to be there
    state_at: float = -math.inf
    pictures: dict[View, tuple[float, dict[str, str]]] = attrs.field(factory=dict)
    sent: deque[float] = attrs.field(factory=lambda: deque(maxlen=MOST))
    heard_at: float = 0.0  # when it was sent anything
    flushing: bool = False

    @property
    def looks(self) -> bool:
        return self.wish.visible or bool(self.wish.views)


@attrs.define(eq=False)
class Picture:
    """A view that somebody looks at: its traits as JSON, and what they were made from."""

    painter: Painter
    traits: dict[str, str] = attrs.field(factory=dict)
    shown: Any = attrs.field(factory=object)
    generation: int = 0
    made_at: float = -math.inf
    took: float = 0.0  # seconds
    painting: bool = False


class Hub:
    """The pages of one server, and the fleet that they look at.

    `make_fleet` is called at the first need, in a thread.
    """

    def __init__(
        self,
        loop: Loop,
        make_fleet: Callable[[Callable[[], None]], Fleet],
        log: Logger,
        now: Callable[[], float] = time.time,
        workers: Callable[[str, int], Workers] = Workers,
    ) -> None:
        self._loop, self._make_fleet, self._log, self._now = loop, make_fleet, log, now
        self._slow = workers("macluster-slow", SLOW)
        self._quick = workers("macluster-quick", QUICK)
        self._painters = workers("macluster-painter", PAINTERS)
        self._fleet: Fleet | None = None
        self._making = threading.Lock()
        self._begun = False
        self._under_way: dict[tuple[str, str], asyncio.Future[Any]] = {}
        self._told = threading.Lock()  # held from a change until the loop knows of it
        self._generation = 1
        self._state: tuple[int, State] | None = None
        self._pages: list[Page] = []
        self._words = 0
        self._pictures: dict[View, Picture] = {}
        self._wanted: tuple[float, str | None] | None = None
        self._wanted_at = -math.inf
        self._timer: Handle | None = None
        self._closed = False

    # -- the fleet ---------------------------------------------------------------------------------

    def call(self, work: Callable[[Fleet], T], *, quick: bool = False) -> Future[T]:
        """Ask something of the fleet, in a thread.

        `quick` is for what must be done while all other threads wait for something.
        """
        return (self._quick if quick else self._slow).submit(lambda: work(self._made()))

    def once(
        self, what: tuple[str, str], work: Callable[[Fleet], T], *, quick: bool = False
    ) -> Awaitable[T]:
        """The same as `call`, for something that makes no sense twice: who asks for what is under
        way already gets the answer of that. Two browsers may show the same button."""
        if what not in self._under_way:
            future = asyncio.wrap_future(self.call(work, quick=quick))
            self._under_way[what] = future
            future.add_done_callback(lambda _: self._under_way.pop(what, None))
        return asyncio.shield(self._under_way[what])

    def look(self, fleet: Fleet) -> dict[str, Any]:
        """The state, for somebody without a websocket; it is kept up to date for a while."""
        if self._wanted is None:
            fleet.want(1.0, None)
        fleet.refresh()
        return fleet.state()

    def _made(self) -> Fleet:
        with self._making:
            if self._closed:
                raise RuntimeError("the server is being stopped")
            if self._fleet is None:
                self._fleet = self._make_fleet(self._on_change)
            return self._fleet

    def _begin(self) -> None:
        """Have a fleet, soon."""
        if self._begun or self._closed:
            return
        self._begun = True
        future = self._quick.submit(self._made)
        future.add_done_callback(lambda done: self._in_loop(lambda: self._ready(done)))

    def _ready(self, done: Future[Fleet]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._begun = False
            report(self._log, "cannot look at clusters", error)
            for page in list(self._pages):
                # It comes again, and then this is tried again.
                page.shut(1011, f"cannot look at clusters: {type(error).__name__}")
        self._pump()

    def _on_change(self) -> None:
        # However often it is called, the loop hears of it once.
        if self._told.acquire(blocking=False):
            self._in_loop(self._note_change)

    def _note_change(self) -> None:
        self._told.release()
        self._generation += 1
        self._pump()

    def _in_loop(self, call: Callable[[], None]) -> None:
        # The loop may be closed already.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _newest(self) -> State | None:
        """The state as of now; None while nothing is known."""
        if self._fleet is not None and (self._state is None or self._state[0] != self._generation):
            try:
                self._state = self._generation, sendable(self._fleet.state())
            except Exception as error:
                # The next change brings another try; meanwhile what is known stays.
                report(self._log, "no state of the clusters", error)
        return None if self._state is None else self._state[1]

    # -- pages -------------------------------------------------------------------------------------

    def join(self, page: Page) -> None:
        """A page has come. It hears nothing but "alive" before it says that it looks."""
        page.heard_at = self._loop.time()
        self._pages.append(page)
        self._pump()

    def leave(self, page: Page) -> None:
        """A page has gone."""
        if page in self._pages:
            self._pages.remove(page)
            self._pump()

    def hear(self, page: Page, wish: Wish) -> None:
        """A page says what it looks at from now on."""
        if wish.visible and not page.wish.visible:
            page.has, page.generation = None, 0
        page.wish = wish
        self._words += 1
        page.spoke = self._words
        for view in page.pictures.keys() - set(wish.views):
            del page.pictures[view]
        if page.looks:
            self._begin()
        self._pump()

    # -- what is sent, and when --------------------------------------------------------------------

    def _pump(self) -> None:
        """Do all that is due, and come back when something else will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        now = self._loop.time()
        due = [self._want(now)]
        self._pictures = {
            view: self._pictures.get(view) or Picture(Painter(view))
            for page in self._pages
            for view in page.wish.views
        }
        due += [self._paint(picture, now) for picture in self._pictures.values()]
        due += [self._serve(page, now) for page in list(self._pages)]
        soonest = min(due)
        if soonest < math.inf:
            self._timer = self._loop.call_at(soonest, self._pump)

    def _want(self, now: float) -> float:
        """Tell the fleet that somebody looks, while somebody does."""
        looking = sorted((page for page in self._pages if page.looks), key=lambda each: -each.spoke)
        if not looking or self._fleet is None:
            self._wanted, self._wanted_at = None, -math.inf
            return math.inf
        chosen = [page.wish.chosen for page in looking]
        chosen += [view.cluster for page in looking for view in page.wish.views]
        wanted = (
            min(page.wish.period for page in looking),
            next((name for name in chosen if name is not None), None),
        )
        if wanted != self._wanted or now >= self._wanted_at + WANT:
            self._wanted, self._wanted_at = wanted, now
            self._fleet.want(*wanted)
        return self._wanted_at + WANT

    def _paint(self, picture: Picture, now: float) -> float:
        """Have a view made anew, where what it shows may have changed."""
        if picture.painting or picture.generation == self._generation:
            return math.inf
        view = picture.painter.view
        period = min(page.wish.period for page in self._pages if view in page.wish.views)
        # 64 ranks that are all linked take a fifth of a second: that is not done all the time.
        due = picture.made_at + max(period, min(REST * picture.took, LONGEST_REST))
        if now < due:
            return due
        state, fleet = self._newest(), self._fleet
        if state is None or fleet is None:
            return math.inf
        picture.generation = self._generation
        shown = shows(view, state, "error" in picture.traits)
        if shown == picture.shown:
            return math.inf
        picture.shown, picture.made_at, picture.painting = shown, now, True
        future = self._painters.submit(lambda: picture.painter.paint(fleet))
        future.add_done_callback(lambda done: self._in_loop(lambda: self._painted(picture, done)))
        return math.inf

    def _painted(self, picture: Picture, done: Future[dict[str, str]]) -> None:
        picture.painting = False
        picture.took = self._loop.time() - picture.made_at
        error = None if done.cancelled() else done.exception()
        if error is not None:
            report(self._log, f"cannot draw a view ({picture.painter.view.kind})", error)
            words = f"It could not be drawn ({type(error).__name__}): the server's log says where."
            picture.traits = {"error": json.dumps(words)}
        elif not done.cancelled():
            picture.traits = done.result()
        self._pump()

    def _serve(self, page: Page, now: float) -> float:
        """Send the one message that has waited longest, if there is any."""
        if page.flushing:
            return math.inf
        while True:
            when, view = min(
                self._waiting(page), key=lambda each: each[0], default=(math.inf, None)
            )
            if len(page.sent) == MOST:
                when = max(when, page.sent[0] + WINDOW)
            if now < when:
                break
            fields = self._state_for(page, now) if view is None else self._view_for(page, view, now)
            if fields:
                self._send(page, fields, now)
                return math.inf
        alive = page.heard_at + ALIVE
        if now >= alive:
            self._send(page, '"alive":true', now)
            return math.inf
        return min(when, alive)

    def _waiting(self, page: Page) -> list[tuple[float, View | None]]:
        """What a page has not got yet, and from when on it may have it; None is the state."""
        found: list[tuple[float, View | None]] = []
        period = page.wish.period
        if page.wish.visible and self._fleet is not None and page.generation != self._generation:
            found.append((-math.inf if page.has is None else page.state_at + period, None))
        for view in page.wish.views:
            at, traits = page.pictures.get(view, (-math.inf, {}))
            # Set by the pump, which goes on for a page that has just come.
            picture = self._pictures.get(view)
            if picture is not None and picture.traits != traits:
                found.append((at + period, view))
        return found

    def _state_for(self, page: Page, now: float) -> str:
        """The whole state, or what has changed in it; "" when nothing has."""
        state = self._newest()
        page.generation = self._generation
        if state is None:
            return ""
        before, page.has = page.has, state
        if before is None:
            fields = f'"state":{_json(state)}'
        else:
            patch = merge_patch(before, state)
            if not patch:
                return ""
            fields = f'"patch":{_json(patch)}'
        page.state_at = now
        return fields

    def _view_for(self, page: Page, view: View, now: float) -> str:
        """A view's traits, of those that the page has only what differs."""
        traits = self._pictures[view].traits
        _, before = page.pictures.get(view, (0.0, {}))
        page.pictures[view] = now, traits
        if "error" in before or "error" in traits:
            before = {}
        fresh = ",".join(
            f"{_json(name)}:{text}" for name, text in traits.items() if before.get(name) != text
        )
        return f'"view":{_json(attrs.asdict(view))},"traits":{{{fresh}}}'

    def _send(self, page: Page, fields: str, now: float) -> None:
        page.sent.append(now)
        page.heard_at = now
        page.flushing = True
        try:
            flushed = page.write(f'{{"now":{self._now():.3f},{fields}}}')
        except Exception:
            # Closed, and `leave` has not been called yet. Not by `leave`: the pump is at work.
            self._pages.remove(page)
            return
        flushed.add_done_callback(lambda done: self._flushed(page, done))

    def _flushed(self, page: Page, done: Any) -> None:
        page.flushing = False
        if done.cancelled() or done.exception() is not None:
            self.leave(page)
        else:
            self._pump()

    # -- the end -----------------------------------------------------------------------------------

    async def close(self) -> None:
        """End all connections and let go of the fleet. The clusters run on."""
        self._closed = True
        self._pump()
        pages, self._pages = self._pages, []
        for page in pages:
            page.shut(1001, "the server is being stopped")
        for workers in (self._slow, self._quick, self._painters):
            workers.close()
        last = Workers("macluster-close", 1)
        closing = asyncio.wrap_future(last.submit(self._let_go))
        _, late = await asyncio.wait([closing], timeout=CLOSING)
        last.close()
        if late:
            self._log.warning("macluster: a cluster is not let go of within %.0f s", CLOSING)

    def _let_go(self) -> None:
        with self._making:
            fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.close()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
