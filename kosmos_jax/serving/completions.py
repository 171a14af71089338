"""/v1/completions: a text continues."""

import asyncio
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from data_pipeline.documents import Text
from kosmos_jax.inference.options import Completion
from kosmos_jax.inference.prompts import EncodedPrompt
from kosmos_jax.serving import protocol
from kosmos_jax.serving.protocol import BadRequest


async def answer(server, request: Request) -> Response:
    body = await server.body(request)
    asked = protocol.read_asked(body, protocol.COMPLETION)
    prompts = await asyncio.to_thread(_prompts, server, body.get("prompt"))
    most = body.get("max_tokens")
    most = 16 if most is None else most
    if not isinstance(most, int) or isinstance(most, bool) or most < (0 if asked.echo else 1):
        raise BadRequest("max_tokens must be a whole number, at least 1 (0 with echo)", "max_tokens")
    if asked.stream and (len(prompts) > 1 or asked.echo):
        raise BadRequest("a stream has one prompt, and no echo", "stream")
    options = protocol.make_options(asked, max(most, 1))
    head = protocol.envelope("text_completion", server.name, "cmpl")
    if asked.stream:
        return await server.stream(request, prompts[0][0], options, asked, head, partial(_completion_piece, server))
    tasks = [_completed(server, *prompt, options, asked, most) for prompt in prompts]
    found = await server.unless_gone(request, together(tasks))
    choices = [choice for several in found for choice in several[0]]
    for index, choice in enumerate(choices):
        choice["index"] = index
    totals = [several[1] for several in found]
    return JSONResponse(head | dict(choices=choices, usage={key: sum(u[key] for u in totals) for key in totals[0]}))


async def _completed(server, prompt: EncodedPrompt, given: list[int], options, asked, most: int):
    """The choices for one prompt, and its usage.

    Args:
      server: app.Server.
      prompt: what the model reads.
      given: the ids of it that the client knows, and gets back with echo: <s> only if it sent that.
      options: of the prompt.
      asked: protocol.Asked.
      most: new tokens at most.
    """
    decode, choices = server.tokenizer.decode, []
    start, scored = prompt._replace(tokens=prompt.tokens[:1]), None
    completions = [Completion("", [], "length", *([], []) if asked.top is not None else ())]
    wanted = [server.last("generate", prompt, options)] if most else []
    if asked.echo and asked.top is not None:
        wanted.append(server.last("score", start, [prompt.tokens[1:]], asked.top))
    found = await together(wanted)
    if most:
        completions = found[0]
    if asked.echo and asked.top is not None:
        (scored,) = found[-1]
    for completion in completions:
        text, logprobs = server.text(completion, options, asked), None
        if asked.echo:  # together: alone, a text has no space before its first word
            whole, cut = decode([*given, *completion.tokens]), len(decode(completion.tokens)) - len(text)
            text = whole[: len(whole) - cut]
        if asked.top is not None:
            tokens, values, top = server.told(completion)
            if asked.echo:
                # The first has none in the protocol, <s> or not.
                first = len(scored.logprobs) - len(given) + 1
                values = [*[None] * bool(given), *scored.logprobs[first:], *values]
                top = [*[[]] * bool(given), *(scored.top or [[] for _ in scored.logprobs])[first:], *top]
                tokens = [*given, *tokens]
            logprobs = protocol.completion_logprobs(tokens, values, top, server.text_of)
        choice = dict(text=text, logprobs=logprobs, finish_reason=protocol.finish_of(completion))
        if asked.ids:
            choice |= dict(token_ids=completion.tokens, prompt_token_ids=prompt.tokens.tolist())
        choices.append(choice)
    return choices, protocol.usage(len(prompt.tokens), completions)


def _prompts(server, given) -> list[tuple[EncodedPrompt, list[int]]]:
    """The prompts of a body, a text, texts, ids, or lists of ids; each with the ids that the client knows."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and given and all(isinstance(x, int) and not isinstance(x, bool) for x in given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise BadRequest("prompt must be a text, a list of texts, or ids of tokens", "prompt")
    if len(given) > server.worker.most:
        raise BadRequest(f"{len(given)} prompts; at most {server.worker.most} can be there at the same time", "prompt")
    found = []
    for prompt in given:
        if isinstance(prompt, str):
            encoded = server.encoded([Text(prompt)])
            found.append((encoded, encoded.tokens[1:].tolist()))
        elif isinstance(prompt, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in prompt):
            size = server.tokenizer.size
            if wrong := [token for token in prompt if not 0 <= token < size]:
                raise BadRequest(f"prompt has the id {wrong[0]}; this model has 0 to {size - 1}", "prompt")
            tokens = prompt if prompt[:1] == [server.tokenizer.bos] else [server.tokenizer.bos, *prompt]
            found.append((EncodedPrompt(np.array(tokens, np.int32), (), np.zeros(0, np.int32), {}), prompt))
        else:
            raise BadRequest("prompt must be a text, a list of texts, or ids of tokens", "prompt")
    return found


def _completion_piece(server, index: int, text: str, completion, new: slice, finish) -> dict:
    choice = dict(index=index, text=text, logprobs=None, finish_reason=finish)
    if completion.logprobs is not None:
        told = [values[new] for values in server.told(completion)]
        choice["logprobs"] = protocol.completion_logprobs(*told, server.text_of)
    return choice


async def together(work):
    """The results of several coroutines; when one fails, the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
