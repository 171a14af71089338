"""Messages of a dialogue to a prompt, by a template that has a name."""

from collections.abc import Iterator

from kosmos_jax.errors import UserError

# What stands before and after a message, by the role of who wrote it; the prompt ends with "answer".
TEMPLATES = {
    # A model that was pre-trained alone continues what it reads: contents in order.
    "base": dict(system=("", "\n"), user=("", ""), assistant=("", "\n"), answer=""),
    # KOSMOS-1's zero-shot prompts for questions (arXiv 2302.14045, section 4).
    "question-answer": dict(system=("", "\n"), user=("Question: ", " Answer:"), assistant=(" ", "\n"), answer=""),
    # Instructions as Alpaca has them, without its preamble.
    "instruction": dict(system=("", "\n"), user=("Instruction: ", "\nResponse:"), assistant=(" ", "\n"), answer=""),
}


def prompt_of(messages: list[tuple[str, list]], template: str) -> Iterator:
    """The parts of a prompt: texts and items.

    Args:
      messages: role and parts of each.
      template: a name of `TEMPLATES`.

    Raises:
      UserError: a role that the template does not have.
    """
    form = TEMPLATES[template]
    for role, parts in messages:
        if role == "answer" or role not in form:
            raise UserError(f"a message's role is {role!r}; this server knows system, user and assistant")
        before, after = form[role]
        yield from [*([before] if before else []), *parts, *([after] if after else [])]
    if form["answer"]:
        yield form["answer"]
