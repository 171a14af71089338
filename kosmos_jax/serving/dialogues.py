"""/v1/chat/completions and /v1/responses: the next message of a dialogue."""

import asyncio
import dataclasses
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data_pipeline.documents import Media, Text
from kosmos_jax.inference.prompts import EncodedPrompt
from kosmos_jax.serving import chat, media, protocol
from kosmos_jax.serving.protocol import BadRequest

MEDIA_PARTS = ("image_url", "input_image", "input_audio")


async def answer(server, request: Request) -> Response:
    body = await server.body(request)
    asked = protocol.read_asked(body, protocol.CHAT)
    prompt = await _dialogue(server, body.get("messages"))
    options = _options(server, prompt, asked, body, ("max_completion_tokens", "max_tokens"))
    if asked.stream:
        head = protocol.envelope("chat.completion.chunk", server.name, "chatcmpl")
        return await server.stream(request, prompt, options, asked, head, partial(_chat_piece, server))
    completions = await server.unless_gone(request, server.last("generate", prompt, options))
    head = protocol.envelope("chat.completion", server.name, "chatcmpl")
    choices = []
    for index, completion in enumerate(completions):
        message = dict(role="assistant", content=server.text(completion, options, asked), refusal=None)
        told = None if asked.top is None else protocol.chat_logprobs(*server.told(completion), server.text_of)
        finish = protocol.finish_of(completion)
        choices.append(dict(index=index, message=message, logprobs=told, finish_reason=finish))
        if asked.ids:
            choices[-1] |= dict(token_ids=completion.tokens, prompt_token_ids=prompt.tokens.tolist())
    return JSONResponse(head | dict(choices=choices, usage=protocol.usage(len(prompt.tokens), completions)))


def _options(server, prompt, asked, body, names):
    """The options of an answer, of as many tokens as the body says, or as there is room for, within a bound."""
    for name in names:
        most = body.get(name)
        if most is not None:
            if not isinstance(most, int) or isinstance(most, bool) or most < 1:
                raise BadRequest(f"{name} must be a whole number, at least 1", name)
            return protocol.make_options(asked, most)
    options = protocol.make_options(asked, protocol.MOST_CHAT_TOKENS)
    room = server.worker.engine.room(len(prompt.tokens), options.branches)
    return dataclasses.replace(options, max_new_tokens=max(1, min(options.max_new_tokens, room)))


async def _dialogue(server, messages) -> EncodedPrompt:
    """The prompt of a list of messages. Media are counted before any is looked at, and have threads of their own."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", "messages")
    contents, items = [], 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("a message is an object with a role and a content", "messages")
        content = message.get("content")
        content = [dict(type="text", text=content)] if isinstance(content, str) else content
        if not isinstance(content, list):
            raise BadRequest("a message's content is a text, or a list of parts", "messages")
        items += sum(isinstance(part, dict) and part.get("type") in MEDIA_PARTS for part in content)
        contents.append(({"developer": "system"}.get(message["role"], message["role"]), content))
    if items > server.limits.items:
        raise BadRequest(f"a request may have {server.limits.items} items of media; this one has {items}", "messages")

    def read():
        roles = [(role, [_part(server, part) for part in content]) for role, content in contents]
        prompt = chat.prompt_of(roles, server.template)
        return server.encoded([Text(part) if isinstance(part, str) else part for part in prompt])

    return await asyncio.get_running_loop().run_in_executor(server.readers if items else None, read)


def _part(server, part) -> Text | Media:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "image_url" and isinstance(part.get("image_url"), dict):
        return Media("image", media.from_url(part["image_url"].get("url"), "image", server.limits))
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return Media("image", media.from_url(part["image_url"], "image", server.limits))
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return Media("audio", media.from_base64(part["input_audio"].get("data"), "audio", server.limits))
    raise BadRequest(f"a part of the type {str(kind)[:40]!r} is not known here, or is not complete", "messages")


def _chat_piece(server, index: int, text: str, completion, new: slice, finish) -> dict:
    choice = dict(index=index, delta=dict(content=text), logprobs=None, finish_reason=finish)
    if completion.logprobs is not None:
        told = [values[new] for values in server.told(completion)]
        choice["logprobs"] = protocol.chat_logprobs(*told, server.text_of)
    return choice


async def respond(server, request: Request) -> Response:
    """OpenAI's newer endpoint, without a memory: `input` is a text, or messages."""
    body = await server.body(request)
    given = body.get("input")
    asked = protocol.read_asked(body, protocol.RESPONSES)
    several = body.get("n") not in (None, 1)
    for name in [*(["n"] if several else []), *filter(body.get, ("stream", "logprobs", "return_token_ids"))]:
        raise BadRequest(f"{name} is not there: /v1/responses gives one answer, at its end, and text alone", name)
    messages = [dict(role="user", content=given)] if isinstance(given, str) else given
    if not isinstance(messages, list):
        raise BadRequest("input must be a text, or a list of messages", "input")
    if body.get("instructions"):
        messages = [dict(role="system", content=body["instructions"]), *messages]
    prompt = await _dialogue(server, messages)
    options = _options(server, prompt, asked, body, ("max_output_tokens",))
    work = server.last("generate", prompt, options)
    (completion, *_) = completions = await server.unless_gone(request, work)
    used = protocol.usage(len(prompt.tokens), completions)
    head = protocol.envelope("response", server.name, "resp")
    content = [dict(type="output_text", text=completion.text, annotations=[])]
    message = dict(type="message", id=f"msg-{head['id']}", role="assistant", status="completed", content=content)
    told = dict(input_tokens=used["prompt_tokens"], output_tokens=used["completion_tokens"])
    full = completion.finish == "length"
    head |= dict(created_at=head.pop("created"), status="incomplete" if full else "completed", error=None)
    head |= dict(incomplete_details=dict(reason="max_output_tokens") if full else None)
    return JSONResponse(head | dict(output=[message], usage=told | dict(total_tokens=used["total_tokens"])))
