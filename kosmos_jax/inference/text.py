"""Text from tokens while they come: what may be shown already, and where a stop string ends it."""


def cut(text: str, stop: tuple[str, ...]) -> str | None:
    """The text before the first of the stop strings; None if none is in it."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places)] if places else None


def settled(text: str, stop: tuple[str, ...]) -> str:
    """The beginning of an unfinished text that more tokens cannot change.

    With "own fox" to stop at, "a brown" is held back from its "own" on. A character that still lacks bytes, decoded as
    U+FFFD, is held back too.
    """
    text = text.rstrip("\ufffd")
    ends = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return text[: len(text) - max(ends, default=0)]


def first_tokens_with(decode, tokens: list[int], stop: tuple[str, ...]) -> list[int]:
    """The tokens up to the one that completes a stop string.

    Args:
      decode: tokens -> text.
      tokens: in whose text one of the stop strings is.
      stop: the strings.
    """
    return next(tokens[:n] for n in range(len(tokens) + 1) if cut(decode(tokens[:n]), stop) is not None)
