"""OpenAI's protocol: bodies of requests to prompts and options, completions back to bodies.

What a body asks for is done or refused: a field that is not known here is an error, since leaving it out in silence
would answer another question. Beside OpenAI's own fields there are those of vLLM that `Options` has.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kosmos_jax.errors import UserError
from kosmos_jax.inference.options import Completion, Options

# Fields with OpenAI's or vLLM's name -> the option.
NAMES = dict(
    temperature="temperature",
    top_p="top_p",
    top_k="top_k",
    min_p="min_p",
    repetition_penalty="repetition_penalty",
    no_repeat_ngram_size="no_repeat_ngram",
    seed="seed",
    n="n",
    stop="stop",
    stop_token_ids="stop_ids",
    ignore_eos="ignore_eos",
    min_tokens="min_new_tokens",
    length_penalty="length_penalty",
    allowed_token_ids="allowed",
)
# What changes no text, and what is accepted at the values that ask for nothing; null asks for nothing anywhere.
IGNORED = {"model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
IGNORED |= {"parallel_tool_calls"}
NOTHING = dict(
    frequency_penalty=(0,),
    presence_penalty=(0,),
    best_of=(1,),
    suffix=("",),
    tools=([],),
    tool_choice=("none", "auto"),
    response_format=({"type": "text"},),
    modalities=(["text"],),
    text=({}, {"format": {"type": "text"}}),
    truncation=("disabled",),
    background=(False,),
    skip_special_tokens=(True,),
)
SPECIAL = {"stream", "stream_options", "logprobs", "use_beam_search", "structured_outputs", "logit_bias"}
SPECIAL |= {"include_stop_str_in_output", "return_token_ids"}
COMPLETION = {"prompt", "max_tokens", "echo"}
CHAT = {"messages", "max_tokens", "max_completion_tokens", "top_logprobs"}
RESPONSES = {"input", "instructions", "max_output_tokens"}
MOST_CHAT_TOKENS = 256
LEAST_LOGPROB = -9999.0


class BadRequest(UserError):
    """A body that cannot be answered; `param` is the field, `status` the one of HTTP."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


@dataclass
class Asked:
    """What a body asks for beside prompts.

    Attributes:
      options: of each prompt; without max_new_tokens where the body has none.
      stream, usage: whether pieces are sent as they come, and the usage at the end.
      echo: whether the prompt comes back before the text.
      top: how many of the most likely tokens to tell, None for no log-probabilities.
      with_stop: whether a stop string stays in the text.
      ids: whether token ids are told.
    """

    options: dict = field(default_factory=dict)
    stream: bool = False
    usage: bool = False
    echo: bool = False
    top: int | None = None
    with_stop: bool = False
    ids: bool = False


def read_asked(body: Mapping, own: set[str]) -> Asked:
    """All of a body but its prompts or messages.

    Args:
      body: from JSON.
      own: names of `COMPLETION`, `CHAT` or `RESPONSES`.

    Raises:
      BadRequest: a field that is unknown, of the wrong type, or that asks for what cannot be.
    """
    for name, value in body.items():
        if value is None or name in NAMES or name in own or name in SPECIAL or name in IGNORED:
            continue
        if name not in NOTHING:
            raise BadRequest(f"{name} is not known here", name)
        if value not in NOTHING[name]:
            raise BadRequest(f"{name} is not supported", name)
    asked = Asked()
    asked.options = {option: body[name] for name, option in NAMES.items() if body.get(name) is not None}
    for name in ("stream", "echo", "use_beam_search", "include_stop_str_in_output", "return_token_ids", "ignore_eos"):
        if not isinstance(body.get(name) or False, bool):
            raise BadRequest(f"{name} is {json.dumps(body[name])[:40]}; it must be true or false", name)
    asked.stream, asked.echo = bool(body.get("stream")), bool(body.get("echo"))
    asked.with_stop, asked.ids = bool(body.get("include_stop_str_in_output")), bool(body.get("return_token_ids"))
    stream_options = body.get("stream_options") or {}
    if not isinstance(stream_options, dict) or stream_options.keys() - {"include_usage", "include_obfuscation"}:
        raise BadRequest("stream_options knows include_usage alone", "stream_options")
    asked.usage = bool(stream_options.get("include_usage"))
    asked.top = _top(body, own)
    asked.options["top_logprobs"] = asked.top
    for name in ("stop_token_ids", "allowed_token_ids"):
        if not isinstance(body.get(name) or [], list):
            raise BadRequest(f"{name} must be a list of ids", name)
    if body.get("use_beam_search"):
        asked.options["beams"] = asked.options.get("n", 1)
        asked.options.setdefault("temperature", 0.0)
    else:
        asked.options.setdefault("temperature", 1.0)  # OpenAI's default
    if body.get("seed") is None:
        asked.options["seed"] = None
    bias = body.get("logit_bias") or {}
    try:
        asked.options |= {"bias": {int(token): float(value) for token, value in bias.items()}} if bias else {}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise BadRequest("logit_bias is an object of ids and numbers", "logit_bias") from error
    constraint = body.get("structured_outputs")
    if constraint is not None:
        if not isinstance(constraint, dict) or set(constraint) != {"choice"}:
            raise BadRequest("structured_outputs knows choice alone", "structured_outputs")
        asked.options["choice"] = constraint["choice"]
    return asked


def _top(body: Mapping, own: set[str]) -> int | None:
    """How many of the most likely tokens are wanted: completions ask by a number, chat by two fields."""
    wanted, top = body.get("logprobs"), body.get("top_logprobs")
    if own is not COMPLETION:
        if not isinstance(wanted or False, bool):
            raise BadRequest("logprobs is true or false here", "logprobs")
        if top is not None and not wanted:
            raise BadRequest("top_logprobs goes with logprobs: true", "top_logprobs")
        wanted = (top or 0) if wanted else None
    if wanted is None or wanted is False:
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int):
        raise BadRequest("logprobs must be a whole number", "logprobs")
    return wanted


def make_options(asked: Asked, most: int) -> Options:
    """The options of one prompt, with `most` new tokens where the body does not say."""
    return Options(**{"max_new_tokens": most} | asked.options)


def finish_of(completion: Completion) -> str | None:
    """OpenAI's reason for the end of a text; None while it is written."""
    return {"": None, "length": "length"}.get(completion.finish, "stop")


def usage(prompt_tokens: int, completions: list[Completion]) -> dict:
    """What a request took."""
    written = sum(len(completion.tokens) + (completion.finish == "end") for completion in completions)
    return dict(prompt_tokens=prompt_tokens, completion_tokens=written, total_tokens=prompt_tokens + written)


def logprob(value: float) -> float:
    """A log-probability as JSON can have it."""
    return max(value, LEAST_LOGPROB)


def completion_logprobs(tokens, logprobs, top, text_of: Callable) -> dict:
    """Log-probabilities as /v1/completions has them.

    Args:
      tokens: ids.
      logprobs: of each; None for one that has none.
      top: the most likely tokens of each, as `Completion.top`.
      text_of: id -> text.
    """
    words, offsets, offset, begins = [text_of(token) for token in tokens], [], 0, True
    for word in words:
        offsets.append(offset)
        offset += len(word) - (begins and word.startswith(" "))  # a text, or a line, has no space before it
        begins = word == "\n"
    tops = [
        None if value is None else {text_of(i): logprob(x) for i, x in few} | {word: logprob(value)}
        for word, value, few in zip(words, logprobs, top, strict=True)
    ]
    values = [None if value is None else logprob(value) for value in logprobs]
    return dict(tokens=words, token_logprobs=values, top_logprobs=tops, text_offset=offsets)


def chat_logprobs(tokens, logprobs, top, text_of: Callable) -> dict:
    """Log-probabilities as /v1/chat/completions has them; see `completion_logprobs`."""

    def entry(token: int, value: float) -> dict:
        text = text_of(token)
        return dict(token=text, logprob=logprob(value), bytes=list(text.encode()))

    content = [
        entry(token, value) | dict(top_logprobs=[entry(*pair) for pair in few])
        for token, value, few in zip(tokens, logprobs, top, strict=True)
    ]
    return dict(content=content, refusal=None)


def envelope(kind: str, model: str, prefix: str) -> dict:
    """What every answer begins with."""
    return dict(id=f"{prefix}-{uuid.uuid4().hex}", object=kind, created=int(time.time()), model=model)


def error_body(message: str, status: int, param: str | None = None) -> dict:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    # Half of a surrogate pair, which a name of a field may have, cannot be sent.
    message, param = (text and text.encode(errors="backslashreplace").decode() for text in (message, param))
    return dict(error=dict(message=message, type=kind, param=param, code=status))
