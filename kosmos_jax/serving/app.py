"""Routes: from a request of HTTP to the worker and back."""

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from data_pipeline.documents import MediaError, Text
from kosmos_jax.errors import UserError
from kosmos_jax.inference.prompts import EncodedPrompt, encode_prompt
from kosmos_jax.serving import chat, completions, dialogues, media, protocol
from kosmos_jax.serving.metrics import Metrics
from kosmos_jax.serving.protocol import BadRequest
from kosmos_jax.serving.worker import Closing, Failed, Full, Worker

log = logging.getLogger(__name__)
OPEN = ("/", "/health", "/ready")  # without a key; the page and its files too
RETRY_SECONDS, BODY_SECONDS, READERS = 1, 60, 4


class Server:
    """The application: what its handlers share.

    Attributes:
      worker: owns the engine.
      readers: threads that fetch and decode media; what is slow there holds up nothing else.
      app: for uvicorn.
    """

    def __init__(self, worker: Worker, metrics: Metrics, name: str, template: str, limits: media.Limits, key: str = ""):
        """Puts the routes together.

        Args:
          worker: owns the engine.
          metrics: what /metrics shows.
          name: of the model.
          template: of dialogues, one of `chat.TEMPLATES`.
          limits: what a request may bring.
          key: that every request has to have; "" for none.
        """
        self.worker, self.metrics, self.name, self.template = worker, metrics, name, template
        self.limits, self._key, self.tokenizer = limits, key, worker.generator.tokenizer
        self.readers, self._inside = ThreadPoolExecutor(READERS, "media"), 0
        posts = {
            "/v1/completions": partial(completions.answer, self),
            "/v1/chat/completions": partial(dialogues.answer, self),
            "/v1/responses": partial(dialogues.respond, self),
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
        }
        gets = {
            "/v1/models": self.models,
            "/tokenizer_info": self.tokenizer_info,
            "/health": self.health,
            "/ready": self.ready,
            "/metrics": self.show_metrics,
        }
        routes = [Route(path, self._guarded(handler), methods=["POST"]) for path, handler in posts.items()]
        routes += [Route(path, self._guarded(handler), methods=["GET"]) for path, handler in gets.items()]
        page = StaticFiles(directory=Path(__file__).with_name("page"), html=True)
        self.app = Starlette(routes=[*routes, Mount("/", page)], exception_handlers={HTTPException: self._no_route})

    def _guarded(self, handler):
        """A handler whose errors become bodies that clients understand."""

        @functools.wraps(handler)
        async def guarded(request: Request) -> Response:
            begin, headers = time.monotonic(), {}
            self._inside += request.method == "POST"
            try:
                given = request.headers.get("authorization", "").removeprefix("Bearer ")
                if self._key and request.url.path not in OPEN:
                    if not hmac.compare_digest(given.encode(), self._key.encode()):
                        raise BadRequest("the key of this server is missing or wrong", status=401)
                if request.method == "POST" and self._inside > self.worker.most:  # before its body takes memory
                    raise Full
                response = await handler(request)
            except BadRequest as error:
                response = self._error(str(error), error.status, error.param)
            except (UserError, MediaError) as error:
                response = self._error(str(error), 400)
            except Full:
                headers = {"Retry-After": str(RETRY_SECONDS)}
                response = self._error("too many requests wait already; try again", 429)
            except Closing:
                headers = {"Retry-After": "10"}
                response = self._error("the server is shutting down", 503)
            except Failed as error:
                headers = {"x-should-retry": "false"}
                response = self._error(f"the engine has failed: {error}", 500)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception:  # a mistake of ours: clients read it as any other error, and it is counted
                log.exception("%s could not be answered", request.url.path)
                headers = {"x-should-retry": "false"}
                response = self._error("the server made a mistake; its log says more", 500)
            finally:
                self._inside -= request.method == "POST"
            response.headers.update(headers)
            self.metrics.answered(request.url.path, response.status_code)
            if request.method == "POST":  # not what watches the server
                seconds = time.monotonic() - begin
                log.info("%s %d %.3f s", request.url.path, response.status_code, seconds)
            return response

        return guarded

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        return self._error(f"{request.method} {request.url.path[:80]}: {error.detail}", error.status_code)

    @staticmethod
    def _error(message: str, status: int, param: str | None = None) -> JSONResponse:
        return JSONResponse(protocol.error_body(message, status, param), status)

    async def body(self, request: Request) -> dict:
        """The object of a request, of bounded size."""
        size = request.headers.get("content-length", "0")
        data = bytearray()
        too_large = BadRequest(f"a request may have {self.limits.body:,} bytes", status=413)
        if size.isdigit() and int(size) > self.limits.body:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > self.limits.body:
                        raise too_large
        except TimeoutError as error:
            raise BadRequest(f"the body did not come within {BODY_SECONDS} seconds", status=408) from error
        try:
            body = await asyncio.to_thread(json.loads, bytes(data))
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is no JSON: {type(error).__name__}") from error
        if not isinstance(body, dict):
            raise BadRequest("the body must be an object")
        model = body.get("model")
        if model is not None and model != self.name:
            raise BadRequest(f"there is no model {str(model)[:80]!r}; this server has {self.name!r}", "model", 404)
        return body

    def encoded(self, parts: list) -> EncodedPrompt:
        """The prompt of some parts: `Text` and `Media`."""
        length = sum(len(part.text) for part in parts if isinstance(part, Text))
        if length > self.limits.text:  # it would hold a thread for long, and no slot has room for it
            raise BadRequest(f"a request may have {self.limits.text:,} characters; this one has {length:,}")
        return encode_prompt(parts, self.tokenizer)

    def text_of(self, token: int) -> str:
        """One token as it stands in a text."""
        return "\n" if token == self.tokenizer.line else self.tokenizer.token(token).replace("\u2581", " ")

    def told(self, completion):
        """Ids, log-probabilities and most likely tokens of a completion, its end included; nothing if nobody asked."""
        if completion.logprobs is None:
            return [], [], []
        ended = [] if completion.end is None else [completion.end]
        return [*completion.tokens, *ended], completion.logprobs, completion.top

    def text(self, completion, options, asked) -> str:
        if not asked.with_stop or completion.finish != "stop":
            return completion.text
        whole = self.tokenizer.decode(completion.tokens)
        after = whole[len(completion.text) :]
        return completion.text + next(stop for stop in options.stop if after.startswith(stop))

    # What the handlers share

    async def last(self, verb: str, *arguments) -> list:
        """The completions, or scores, of a request once it is done; see `Worker.run`."""
        async for state in self.worker.run(verb, *arguments):
            found = state
        return found

    async def unless_gone(self, request: Request, work):
        """The result of some work, which is cancelled when the client goes away before."""
        task = asyncio.ensure_future(work)

        async def gone():
            while not await request.is_disconnected():
                await asyncio.sleep(0.1)

        watch = asyncio.ensure_future(gone())
        try:
            await asyncio.wait([task, watch], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect
            return task.result()
        finally:
            watch.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def stream(self, request, prompt, options, asked, head, piece) -> Response:
        """Server-sent events with the texts as they are written. The first news is waited for: errors have a status."""
        states = self.worker.run("generate", prompt, options)
        first = await self.unless_gone(request, anext(states))

        async def events():
            current = latest = first
            shown, told, sent, finished = ([0] * len(first) for _ in range(4))
            try:
                if head["object"].startswith("chat"):
                    role = dict(role="assistant", content="")
                    choices = [dict(index=i, delta=role, finish_reason=None) for i in range(len(first))]
                    yield _event(head | dict(choices=choices))
                while current is not None:
                    latest = current
                    for i, completion in enumerate(current):
                        finish, text = protocol.finish_of(completion), self.text(completion, options, asked)
                        if finished[i] or (len(text) == shown[i] and not finish):
                            continue
                        count = len(self.told(completion)[0])
                        choice = piece(i, text[shown[i] :], completion, slice(told[i], count), finish)
                        if asked.ids:
                            choice["token_ids"] = completion.tokens[sent[i] :]
                        shown[i], told[i], finished[i] = len(text), count, bool(finish)
                        sent[i] = len(completion.tokens)
                        yield _event(head | dict(choices=[choice]))
                    current = await anext(states, None)
                if asked.usage:
                    yield _event(head | dict(choices=[], usage=protocol.usage(len(prompt.tokens), latest)))
            except Failed as error:
                yield _event(protocol.error_body(f"the engine has failed: {error}", 500))
            finally:
                await states.aclose()
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    # What the server says of itself

    async def models(self, request: Request) -> Response:
        entry = dict(id=self.name, object="model", created=int(self.metrics.started), owned_by="kosmos_jax")
        entry["max_model_len"] = self.worker.engine.longest
        return JSONResponse(dict(object="list", data=[entry]))

    async def tokenize(self, request: Request) -> Response:
        body = await self.body(request)
        text = body.get("prompt")
        if not isinstance(text, str):
            raise BadRequest("prompt must be a text", "prompt")
        tokens = (await asyncio.to_thread(self.encoded, [Text(text)])).tokens.tolist()
        tokens = tokens if body.get("add_special_tokens", True) else tokens[1:]
        return JSONResponse(dict(tokens=tokens, count=len(tokens), max_model_len=self.worker.engine.longest))

    async def detokenize(self, request: Request) -> Response:
        tokens = (await self.body(request)).get("tokens")
        size = self.tokenizer.size
        if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < size for token in tokens):
            raise BadRequest(f"tokens must be a list of ids, 0 to {size - 1}", "tokens")
        return JSONResponse(dict(prompt=self.tokenizer.decode(tokens)))

    async def tokenizer_info(self, request: Request) -> Response:
        special = {
            name: self.tokenizer.token(getattr(self.tokenizer, name[:3]))
            for name in ("bos_token", "eos_token", "pad_token")
        }
        template = dict(name=self.template, **chat.TEMPLATES[self.template])
        return JSONResponse(special | dict(vocab_size=self.tokenizer.size, chat_template=None, template=template))

    async def health(self, request: Request) -> Response:
        failure = self.worker.failure
        return JSONResponse(dict(status=failure or "ok"), 500 if failure else 200)

    async def ready(self, request: Request) -> Response:
        is_ready = self.worker.ready and not self.worker.failure and not self.worker.closing
        return JSONResponse(dict(ready=is_ready), 200 if is_ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text())


def _event(body: dict) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
