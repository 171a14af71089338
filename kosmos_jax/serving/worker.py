"""The thread that owns the engine, and how handlers of requests wait for it."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable

import jax

from kosmos_jax.errors import UserError
from kosmos_jax.inference.options import Completion
from kosmos_jax.parallel.distributed import leave_at_once
from kosmos_jax.serving.lockstep import Leader, Order

log = logging.getLogger(__name__)


class Full(Exception):
    """So many requests wait that one more is not taken."""


class Closing(Exception):
    """The server takes no more requests."""


class Failed(Exception):
    """The engine came to an end by an error."""


class Job:
    """One request of the engine, as its handler sees it.

    Attributes:
      number: of this job, unlike that of any other.
      request: the engine's, once it was begun.
      queued, first, tokens: when it came, when its first token did (in seconds, None before), and how many it has.
    """

    def __init__(self, number: int):
        self.number, self.request = number, None
        self.queued, self.first, self.tokens = time.monotonic(), None, 0
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue()

    def tell(self, news):
        """Hands something to the handler, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def news(self):
        """What was told next.

        Raises:
          Exception: that was told.
        """
        found = await self._news.get()
        if isinstance(found, Exception):
            raise found
        return found


class Worker:
    """Runs an engine in a thread of its own.

    Attributes:
      most: requests that may be there at the same time.
      ready: whether all is compiled.
      failure: the error that ended the engine, or None.
      closing: whether no more requests are taken.
    """

    def __init__(self, generator, most: int, on_first: Callable = lambda job: None):
        """Args: most: requests that are there at the same time. on_first: told of a job's first token."""
        self.generator, self.engine, self.most, self._on_first = generator, generator.engine, most, on_first
        self.ready, self.failure, self.closing = False, None, False
        self._orders, self._jobs = queue.SimpleQueue(), []  # (Job, Order), or None for the end
        self._count, self._begun, self._lock = 0, 0, threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self):
        self._thread.start()

    @property
    def count(self) -> int:
        """Requests that are there."""
        return self._count

    def close(self):
        """Takes no more requests; those that are there go on."""
        self.closing = True

    def stop(self, seconds: float):
        """Ends the thread, after the requests that are there or so many seconds.

        With several processes it ends this one where the thread is still busy, such as with compiling: an orderly end
        would wait for the others, and they for their next order.
        """
        self.close()
        self.wait(seconds)
        self._orders.put(None)
        self._thread.join(5)
        if self._thread.is_alive() and jax.process_count() > 1:
            log.warning("the engine is busy; the process ends all the same")
            os._exit(0)

    def wait(self, seconds: float):
        """Until no request is there, or so many seconds."""
        end = time.monotonic() + seconds
        while self._count and time.monotonic() < end and not self.failure:
            time.sleep(0.05)

    async def run(self, verb: str, *arguments) -> AsyncIterator:
        """The states of a request: what `snapshot` says after each turn of the engine that changed it.

        Leaving the iterator early cancels the request.

        Args:
          verb, arguments: a call of the engine, see `lockstep.Order`.

        Raises:
          Full, Closing, Failed: it was not taken, or cannot be finished.
          UserError: the engine refuses it.
        """
        if self.failure:
            raise Failed(self.failure)
        if self.closing:
            raise Closing
        with self._lock:
            if self._count >= self.most:
                raise Full
            self._count += 1
            self._begun += 1
            job = Job(self._begun)
        self._orders.put((job, Order(job.number, verb, arguments)))
        try:
            while True:
                done, state = await job.news()
                yield state
                if done:
                    return
        finally:
            self._orders.put((job, Order(job.number, "cancel")))

    def _run(self):
        leader = Leader(self.engine)
        try:
            self.engine.warm_up()
            self.ready = True
            while (asked := self._asked()) is not None:
                leader.tell([order for _, order in asked])
                for job, order in asked:
                    if order.verb == "cancel":
                        self._leave(job)
                    else:
                        self._begin(job, order)
                if self.engine.busy:
                    self.engine.step()
                    self._tell()
            leader.tell(None)
        except Exception as error:  # whatever it is, nobody may wait for it for ever
            log.exception("the engine failed")
            leave_at_once(error, "serve")
            self.failure = f"{type(error).__name__}: {error}"
            for job in self._jobs:
                job.tell(Failed(self.failure))
            while True:
                order = self._orders.get()
                if order is not None:
                    order[0].tell(Failed(self.failure))

    def _asked(self) -> list[tuple[Job, Order]] | None:
        """What was asked since the last turn; waits for something where there is nothing to do. None at the end."""
        asked = []
        while not (self._orders.empty() and (asked or self.engine.busy)):
            asked.append(self._orders.get())
        return None if None in asked else asked

    def _begin(self, job: Job, order: Order):
        try:
            job.request = getattr(self.engine, order.verb)(*order.arguments)
        except UserError as error:
            job.tell(error)
        except Exception as error:  # nothing was begun, so the engine is as it was
            log.exception("a request could not be begun")
            job.tell(Failed(f"{type(error).__name__}: {error}"))
        else:
            self._jobs.append(job)
            if job.request.done:
                self._tell()

    def _leave(self, job: Job):
        if job.request is not None and not job.request.done:
            self.engine.cancel(job.request)
        if job in self._jobs:
            self._jobs.remove(job)
        with self._lock:
            self._count -= 1

    def _tell(self):
        for job in list(self._jobs):
            state, tokens = snapshot(job.request)
            if tokens != job.tokens or job.request.done:
                if job.first is None:
                    job.first = time.monotonic()
                    self._on_first(job)
                job.tokens = tokens
                job.tell((job.request.done, state))
            if job.request.done:
                self._jobs.remove(job)


def snapshot(request) -> tuple[list, int]:
    """The completions, or scores, of a request as they are now, and their tokens."""
    if not hasattr(request, "completions"):
        return list(request.scores), len(request.scores)
    copies = [_copied(completion) for completion in request.completions]
    return copies, sum(len(copy.tokens) for copy in copies)


def _copied(completion: Completion) -> Completion:
    lists = {name: list(value) for name, value in vars(completion).items() if isinstance(value, list)}
    return dataclasses.replace(completion, **lists)
