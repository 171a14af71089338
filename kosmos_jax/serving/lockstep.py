"""A server on several processes: before every turn, process 0 tells the others what its engine is asked for.

What an engine does follows from what it is asked for and when, so engines that are asked the same before the same turns
do the same: each process schedules for itself, and a prompt crosses the network once.
"""

import contextlib
import io
import json
import signal
from typing import Any, NamedTuple

import jax
import numpy as np

from kosmos_jax.inference.options import Options
from kosmos_jax.inference.prompts import EncodedPrompt
from kosmos_jax.parallel.distributed import WAIT_SECONDS, Messages

END = b"end"


class Order(NamedTuple):
    """Something to do before a turn.

    Attributes:
      job: the number of a request.
      verb: a method of the engine: "generate", "score" or "cancel".
      arguments: of "generate" and "score".
    """

    job: int
    verb: str
    arguments: tuple[Any, ...] = ()


class Leader:
    """Process 0, as the others hear it."""

    def __init__(self, engine):
        self._messages = _messages(engine) if jax.process_count() > 1 else None

    def tell(self, several: list[Order] | None):
        """Sends the orders before a turn; None is the end. Alone, does nothing."""
        if self._messages:
            self._messages.send(END if several is None else packed(several))


def follow(engine) -> int:
    """Does what process 0 says, turn by turn, until it says that this is the end.

    Raises:
      PassingError: the engines no longer do the same.
    """
    engine.warm_up()
    # Whoever stops a job tells all its processes; process 0 finishes first what it has, and then ends the others.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    messages, requests = _messages(engine), {}
    while (data := messages.receive()) != END:
        for job, verb, arguments in unpacked(data):
            if verb == "cancel":
                request = requests.pop(job, None)
                if request is not None and not request.done:
                    engine.cancel(request)
            else:
                with contextlib.suppress(Exception):  # process 0 says it to the client
                    requests[job] = getattr(engine, verb)(*arguments)
        if engine.busy:
            engine.step()
    return 0


def _messages(engine) -> Messages:
    return Messages("orders", WAIT_SECONDS, lambda: f"{engine.written} tokens written")


def packed(several: list[Order]) -> bytes:
    """Orders as bytes: JSON, in which an array is its place among those that follow."""
    arrays = []

    def plain(value):
        if isinstance(value, Options):
            return vars(value)
        arrays.append(value)
        return {"array": len(arrays)}

    text = json.dumps(several, default=plain).encode()
    file = io.BytesIO()
    np.savez(file, np.frombuffer(text, np.uint8), *arrays)
    return file.getvalue()


def unpacked(data: bytes) -> list[Order]:
    """What `packed` was given."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = [file[f"arr_{i}"] for i in range(len(file.files))]
    found = json.loads(arrays[0].tobytes(), object_hook=lambda x: arrays[x["array"]] if "array" in x else x)
    return [Order(job, verb, _read(verb, arguments)) for job, verb, arguments in found]


def _read(verb: str, arguments: list) -> tuple:
    if verb == "cancel":
        return ()
    tokens, kinds, starts, media = arguments[0]
    prompt, rest = EncodedPrompt(tokens, tuple(kinds), starts, media), arguments[1:]
    if verb == "generate":
        bias = rest[0]["bias"] and {int(token): value for token, value in rest[0]["bias"].items()}
        rest = [Options(**rest[0] | dict(bias=bias))]
    return prompt, *rest
