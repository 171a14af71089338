"""Routes: from a request of HTTP to the worker and back."""

import asyncio
import contextlib
import functools
import hmac
import json
import logging
import time
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from data_pipeline.documents import Media, MediaError, Text
from kosmos_jax.errors import UserError
from kosmos_jax.inference.prompts import EncodedPrompt, encode_prompt
from kosmos_jax.serving import chat, media, protocol
from kosmos_jax.serving.metrics import Metrics
from kosmos_jax.serving.protocol import BadRequest
from kosmos_jax.serving.worker import Closing, Failed, Full, Worker

log = logging.getLogger(__name__)
OPEN = ("/", "/health", "/ready")  # without a key; the page and its files too
RETRY_SECONDS = 1


class Server:
    """The application: what its handlers share.

    Attributes:
      worker: owns the engine.
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
        posts = {
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat,
            "/v1/responses": self.responses,
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
        self.app = Starlette(routes=[*routes, Mount("/", page)])

    def _guarded(self, handler):
        """A handler whose errors become bodies that clients understand."""

        @functools.wraps(handler)
        async def guarded(request: Request) -> Response:
            begin, headers = time.monotonic(), {}
            try:
                given = request.headers.get("authorization", "").removeprefix("Bearer ")
                if self._key and request.url.path not in OPEN:
                    if not hmac.compare_digest(given.encode(), self._key.encode()):
                        raise BadRequest("the key of this server is missing or wrong", status=401)
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
            response.headers.update(headers)
            self.metrics.answered(request.url.path, response.status_code)
            if request.method == "POST":  # not what watches the server
                seconds = time.monotonic() - begin
                log.info("%s %d %.3f s", request.url.path, response.status_code, seconds)
            return response

        return guarded

    @staticmethod
    def _error(message: str, status: int, param: str | None = None) -> JSONResponse:
        return JSONResponse(protocol.error_body(message, status, param), status)

    async def _body(self, request: Request) -> dict:
        """The object of a request, of bounded size."""
        size = request.headers.get("content-length", "0")
        data = bytearray()
        too_large = BadRequest(f"a request may have {self.limits.body:,} bytes", status=413)
        if size.isdigit() and int(size) > self.limits.body:
            raise too_large
        async for chunk in request.stream():
            data += chunk
            if len(data) > self.limits.body:
                raise too_large
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

    def _text_of(self, token: int) -> str:
        """One token as it stands in a text."""
        return self.tokenizer.token(token).replace("\u2581", " ")

    # Completions

    async def completions(self, request: Request) -> Response:
        body = await self._body(request)
        asked = protocol.read_asked(body, protocol.COMPLETION)
        prompts = await asyncio.to_thread(self._prompts, body.get("prompt"))
        most = body.get("max_tokens")
        most = 16 if most is None else most
        if not isinstance(most, int) or isinstance(most, bool) or most < (0 if asked.echo else 1):
            raise BadRequest("max_tokens must be a whole number, at least 1 (0 with echo)", "max_tokens")
        if asked.stream and (len(prompts) > 1 or asked.echo):
            raise BadRequest("a stream has one prompt, and no echo", "stream")
        options = protocol.make_options(asked, max(most, 1))
        head = protocol.envelope("text_completion", self.name, "cmpl")
        if asked.stream:
            return await self._stream(request, prompts[0], options, asked, head, self._completion_piece)
        tasks = [self._completed(prompt, options, asked, most) for prompt in prompts]
        found = await self._unless_gone(request, _all(tasks))
        choices = [choice for several in found for choice in several[0]]
        for index, choice in enumerate(choices):
            choice["index"] = index
        totals = [several[1] for several in found]
        return JSONResponse(head | dict(choices=choices, usage={key: sum(u[key] for u in totals) for key in totals[0]}))

    async def _completed(self, prompt: EncodedPrompt, options, asked, most: int):
        """The choices for one prompt, and its usage."""
        given = prompt.tokens[1:].tolist()
        scored = None
        if asked.echo:
            start = prompt._replace(tokens=prompt.tokens[:1])
            if prompt.kinds:
                raise BadRequest("echo is for prompts of text", "echo")
            async for state in self.worker.run(lambda engine: engine.score(start, [prompt.tokens[1:]], asked.top or 0)):
                scored = state[0]
        completions = []
        if most:
            async for state in self.worker.run(lambda engine: engine.generate(prompt, options)):
                completions = state
        else:
            completions = [protocol.Completion("", [], "length", *([], []) if asked.top is not None else ())]
        choices = []
        for completion in completions:
            text, logprobs = self._text(completion, options, asked), None
            before = self.tokenizer.decode(given) if asked.echo else ""
            if asked.top is not None:
                tokens, values, top = self._told(completion)
                if asked.echo:
                    top_before = scored.top or [[] for _ in given]
                    tokens = [*given, *tokens]
                    values = [None, *scored.logprobs[1:], *values] if given else values
                    top = [*top_before, *top]
                logprobs = protocol.completion_logprobs(tokens, values, top, self._text_of)
            choice = dict(text=before + text, logprobs=logprobs, finish_reason=protocol.finish_of(completion))
            if asked.ids:
                choice |= dict(token_ids=completion.tokens, prompt_token_ids=prompt.tokens.tolist())
            choices.append(choice)
        return choices, protocol.usage(len(prompt.tokens), completions)

    def _told(self, completion):
        """Ids, log-probabilities and most likely tokens of a completion, its end included; nothing if nobody asked."""
        if completion.logprobs is None:
            return [], [], []
        ended = len(completion.logprobs) > len(completion.tokens)
        return [*completion.tokens, *[self.tokenizer.eos] * ended], completion.logprobs, completion.top

    def _text(self, completion, options, asked) -> str:
        if not asked.with_stop or completion.finish != "stop":
            return completion.text
        whole = self.tokenizer.decode(completion.tokens)
        after = whole[len(completion.text) :]
        return completion.text + next(stop for stop in options.stop if after.startswith(stop))

    def _prompts(self, given) -> list[EncodedPrompt]:
        """The prompts of a body: a text, texts, ids, or lists of ids."""
        if isinstance(given, str):
            given = [given]
        if isinstance(given, list) and given and all(isinstance(x, int) and not isinstance(x, bool) for x in given):
            given = [given]
        if not isinstance(given, list) or not given or len(given) > self.worker.most:
            raise BadRequest("prompt must be a text, a list of texts, or ids of tokens", "prompt")
        found = []
        for prompt in given:
            if isinstance(prompt, str):
                found.append(encode_prompt([Text(prompt)], self.tokenizer))
            elif isinstance(prompt, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in prompt):
                size = self.tokenizer.size
                if wrong := [token for token in prompt if not 0 <= token < size]:
                    raise BadRequest(f"prompt has the id {wrong[0]}; this model has 0 to {size - 1}", "prompt")
                tokens = prompt if prompt[:1] == [self.tokenizer.bos] else [self.tokenizer.bos, *prompt]
                found.append(EncodedPrompt(np.array(tokens, np.int32), (), np.zeros(0, np.int32), {}))
            else:
                raise BadRequest("prompt must be a text, a list of texts, or ids of tokens", "prompt")
        return found

    def _completion_piece(self, index: int, text: str, completion, new: slice, finish) -> dict:
        choice = dict(index=index, text=text, logprobs=None, finish_reason=finish)
        if completion.logprobs is not None:
            told = [values[new] for values in self._told(completion)]
            choice["logprobs"] = protocol.completion_logprobs(*told, self._text_of)
        return choice

    # Chat

    async def chat(self, request: Request) -> Response:
        body = await self._body(request)
        asked = protocol.read_asked(body, protocol.CHAT)
        prompt = await asyncio.to_thread(self._dialogue, body.get("messages"))
        options = protocol.make_options(asked, self._most_new(prompt, body, ("max_completion_tokens", "max_tokens")))
        if asked.stream:
            head = protocol.envelope("chat.completion.chunk", self.name, "chatcmpl")
            return await self._stream(request, prompt, options, asked, head, self._chat_piece)
        completions = await self._unless_gone(request, self._last(prompt, options))
        head = protocol.envelope("chat.completion", self.name, "chatcmpl")
        choices = []
        for index, completion in enumerate(completions):
            message = dict(role="assistant", content=self._text(completion, options, asked), refusal=None)
            told = None if asked.top is None else protocol.chat_logprobs(*self._told(completion), self._text_of)
            finish = protocol.finish_of(completion)
            choices.append(dict(index=index, message=message, logprobs=told, finish_reason=finish))
        return JSONResponse(head | dict(choices=choices, usage=protocol.usage(len(prompt.tokens), completions)))

    def _most_new(self, prompt, body, names) -> int:
        """How many tokens a body wants, or as many as there is room for, within a bound."""
        for name in names:
            most = body.get(name)
            if most is not None:
                if not isinstance(most, int) or isinstance(most, bool) or most < 1:
                    raise BadRequest(f"{name} must be a whole number, at least 1", name)
                return most
        room = self.worker.engine.longest - len(prompt.tokens)
        return max(1, min(protocol.MOST_CHAT_TOKENS, room))

    def _dialogue(self, messages) -> EncodedPrompt:
        """The prompt of a list of messages."""
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list with at least one message", "messages")
        read, items = [], 0
        for message in messages:
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise BadRequest("a message is an object with a role and a content", "messages")
            content = message.get("content")
            content = [dict(type="text", text=content)] if isinstance(content, str) else content
            if not isinstance(content, list):
                raise BadRequest("a message's content is a text, or a list of parts", "messages")
            parts = [self._part(part) for part in content]
            items += sum(isinstance(part, Media) for part in parts)
            if items > self.limits.items:
                raise BadRequest(f"a request may have {self.limits.items} items of media", "messages")
            role = {"developer": "system"}.get(message["role"], message["role"])
            read.append((role, parts))
        prompt = chat.prompt_of(read, self.template)
        parts = [Text(part) if isinstance(part, str) else part for part in prompt]
        return encode_prompt(parts, self.tokenizer)

    def _part(self, part) -> Text | Media:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            return Text(part["text"])
        if kind == "image_url" and isinstance(part.get("image_url"), dict):
            return Media("image", media.from_url(part["image_url"].get("url"), "image", self.limits))
        if kind == "input_image" and isinstance(part.get("image_url"), str):
            return Media("image", media.from_url(part["image_url"], "image", self.limits))
        if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
            return Media("audio", media.from_base64(part["input_audio"].get("data"), "audio", self.limits))
        raise BadRequest(f"a part of the type {str(kind)[:40]!r} is not known here, or is not complete", "messages")

    def _chat_piece(self, index: int, text: str, completion, new: slice, finish) -> dict:
        choice = dict(index=index, delta=dict(content=text), logprobs=None, finish_reason=finish)
        if completion.logprobs is not None:
            told = [values[new] for values in self._told(completion)]
            choice["logprobs"] = protocol.chat_logprobs(*told, self._text_of)
        return choice

    async def responses(self, request: Request) -> Response:
        """OpenAI's newer endpoint, without a memory: `input` is a text, or messages."""
        body = await self._body(request)
        given = body.pop("input", None)
        renamed = {"max_output_tokens": "max_completion_tokens"}
        kept = {renamed.get(name, name): value for name, value in body.items() if name not in ("instructions", "store")}
        asked = protocol.read_asked(kept, protocol.CHAT)
        if asked.stream or kept.get("previous_response_id"):
            raise BadRequest("/v1/responses answers at once and remembers nothing here", "stream")
        messages = [dict(role="user", content=given)] if isinstance(given, str) else given
        if body.get("instructions"):
            messages = [dict(role="system", content=body["instructions"]), *(messages or [])]
        prompt = await asyncio.to_thread(self._dialogue, messages)
        options = protocol.make_options(asked, self._most_new(prompt, kept, ("max_completion_tokens",)))
        (completion, *_) = completions = await self._unless_gone(request, self._last(prompt, options))
        used = protocol.usage(len(prompt.tokens), completions)
        head = protocol.envelope("response", self.name, "resp")
        content = [dict(type="output_text", text=completion.text, annotations=[])]
        message = dict(type="message", id=f"msg-{head['id']}", role="assistant", status="completed", content=content)
        told = dict(input_tokens=used["prompt_tokens"], output_tokens=used["completion_tokens"])
        head |= dict(created_at=head.pop("created"), status="completed", error=None, incomplete_details=None)
        return JSONResponse(head | dict(output=[message], usage=told | dict(total_tokens=used["total_tokens"])))

    # What both share

    async def _last(self, prompt, options):
        """The completions of a prompt, once they are done."""
        return [state async for state in self.worker.run(lambda engine: engine.generate(prompt, options))][-1]

    async def _unless_gone(self, request: Request, work):
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

    async def _stream(self, request, prompt, options, asked, head, piece) -> Response:
        """Server-sent events with the texts as they are written. The first news is waited for: errors have a status."""
        states = self.worker.run(lambda engine: engine.generate(prompt, options))
        first = await self._unless_gone(request, anext(states))

        async def events():
            current = latest = first
            shown, told, finished = ([0] * len(first) for _ in range(3))
            try:
                if head["object"].startswith("chat"):
                    role = dict(role="assistant", content="")
                    choices = [dict(index=i, delta=role, finish_reason=None) for i in range(len(first))]
                    yield _event(head | dict(choices=choices))
                while current is not None:
                    latest = current
                    for i, completion in enumerate(current):
                        finish, text = protocol.finish_of(completion), self._text(completion, options, asked)
                        if finished[i] or (len(text) == shown[i] and not finish):
                            continue
                        count = len(self._told(completion)[0])
                        choice = piece(i, text[shown[i] :], completion, slice(told[i], count), finish)
                        shown[i], told[i], finished[i] = len(text), count, bool(finish)
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
        body = await self._body(request)
        text = body.get("prompt")
        if not isinstance(text, str):
            raise BadRequest("prompt must be a text", "prompt")
        tokens = (await asyncio.to_thread(encode_prompt, [Text(text)], self.tokenizer)).tokens.tolist()
        tokens = tokens if body.get("add_special_tokens", True) else tokens[1:]
        return JSONResponse(dict(tokens=tokens, count=len(tokens), max_model_len=self.worker.engine.longest))

    async def detokenize(self, request: Request) -> Response:
        tokens = (await self._body(request)).get("tokens")
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
        is_ready = self.worker.ready and not self.worker.failure
        return JSONResponse(dict(ready=is_ready), 200 if is_ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text())


async def _all(work):
    """The results of several coroutines; when one fails, the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _event(body: dict) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
