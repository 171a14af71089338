"""Many prompts from a file of JSON lines, answered in a file of JSON lines, in the same order.

A line of prompts is an object: `prompt` is a text, or a list of texts and of objects such as {"image": "cat.png"} with
a path from the file's folder; what else it has are options of its own, see `Options`, and `id`, which is copied.

    {"prompt": [{"image": "cat.png"}, "Question: what is it? Answer:"], "max_new_tokens": 8, "id": 7}

A line of answers has `text`, `tokens` and `finish`, or `completions` where n is above 1, or `error`. The answers that a
file has are never asked for again, so a run that was killed continues where it was.
"""

import dataclasses
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from tqdm import tqdm

from data_pipeline.documents import MediaError
from data_pipeline.media import MEDIA
from kosmos_jax.errors import UserError, from_os
from kosmos_jax.inference.options import Completion, Options
from kosmos_jax.inference.prompts import Item, encode_prompt, read_item
from kosmos_jax.parallel.distributed import WAIT_SECONDS, exchange

# Prompts that are read ahead of the slots: so many that none is ever free.
AHEAD = 64


def run(load: Callable, prompts: str, out: str, options: dict):
    """Answers all lines of a file that have no answer yet.

    Args:
      load: returns the Generator; called once there is something to do.
      prompts, out: paths.
      options: of lines that do not say otherwise, by name.

    Raises:
      UserError: a file that cannot be read or written, or whose answers are not those of its prompts.
    """
    try:
        lines = Path(prompts).read_text().splitlines()
        done = _complete_lines(Path(out))
    except OSError as error:
        raise from_os(f"{error.filename}", error) from error
    main_process = jax.process_index() == 0  # all processes answer, one writes
    done = int(exchange("the answers that are there", str(done), WAIT_SECONDS)[0])
    if done > len(lines):
        raise UserError(f"{out} has {done} answers, and {prompts} {len(lines)} prompts; give another --out")
    if done == len(lines):
        return
    model = load()
    quiet = None if main_process else True
    with (
        open(out if main_process else os.devnull, "a") as file,
        tqdm(total=len(lines), initial=done, unit=" prompts", disable=quiet) as bar,
    ):
        for answer in _answers(model, lines[done:], Path(prompts).parent, options):
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            file.flush()
            bar.update()


def _complete_lines(out: Path) -> int:
    """How many answers a file has; half a line at its end, left by a kill, is cut off."""
    if not out.exists():
        return 0
    data = out.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with open(out, "r+b") as file:
            file.truncate(end)
    return data.count(b"\n")


def _answers(model, lines: list[str], folder: Path, options: dict) -> Iterator[dict]:
    queue, left = deque(), iter(lines)
    while True:
        while len(queue) < AHEAD and (line := next(left, None)) is not None:
            queue.append(_started(model, line, folder, options))
        if not queue:
            return
        known, request, error = queue[0]
        if error or request.done:
            queue.popleft()
            yield known | (dict(error=error) if error else told(request.completions))
        else:
            model.engine.step()


def _started(model, line: str, folder: Path, options: dict):
    """What is copied to the answer, the request, and what is wrong with the line if anything is."""
    known = {}
    try:
        asked = json.loads(line)
        if not isinstance(asked, dict) or "prompt" not in asked:
            raise UserError('a line is an object with "prompt"')
        known = {"id": asked["id"]} if "id" in asked else {}
        own = {name: value for name, value in asked.items() if name not in ("prompt", "id")}
        if unknown := own.keys() - {field.name for field in dataclasses.fields(Options)}:
            raise UserError(f"no option is called {sorted(unknown)[0]!r}")
        prompt = encode_prompt(list(parts(asked["prompt"], folder)), model.tokenizer)
        return known, model.engine.generate(prompt, Options(**options | own)), ""
    except (UserError, MediaError, TypeError, ValueError) as error:
        return known, None, str(error)


def parts(prompt, folder: Path) -> Iterator[str | Item]:
    """The parts of a prompt in JSON; `<image:...>` in its texts is text.

    Args:
      prompt: a text, or a list of texts and of objects with one of the names of media and a path.
      folder: where relative paths begin.

    Raises:
      UserError: it is neither, or a file cannot be read.
    """
    for part in [prompt] if isinstance(prompt, str) else prompt if isinstance(prompt, list) else [None]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and len(part) == 1 and set(part) <= set(MEDIA) and isinstance(*part.values(), str):
            ((kind, path),) = part.items()
            yield read_item(folder / path, kind)
        else:
            forms = " or ".join(f'{{"{kind}": "PATH"}}' for kind in MEDIA)
            raise UserError(f"a prompt is a text, or a list of texts and of {forms}; it has {json.dumps(part)[:80]}")


def told(completions: list[Completion]) -> dict:
    """One completion, or several, for json.dumps, without what nobody asked for."""
    found = [
        {name: value for name, value in dataclasses.asdict(completion).items() if value is not None and name != "end"}
        for completion in completions
    ]
    return found[0] if len(found) == 1 else dict(completions=found)
