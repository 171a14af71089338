"""Checks of single values of a config, shared by everything that owns keys; a message begins with its key."""

import difflib
from collections.abc import Iterable, Iterator, Mapping


def at_least(section: str, config, keys: Mapping[float, Iterable[str]]) -> Iterator[str]:
    """The keys of a section that are no numbers or too small.

    Args:
      section: of `config`, for the messages: "model.text", or "" for none.
      config: has the keys.
      keys: the least allowed value and the keys that it holds for; what must be at least 1 is a count.
    """
    for least, names in keys.items():
        for name in names:
            key, value = f"{section}.{name}".lstrip("."), config[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                yield f"{key} is {value!r}; it must be a number"
            elif least == 1 and not isinstance(value, int):
                yield f"{key} is {value!r}; it must be a whole number"
            elif not value >= least:
                yield f"{key} is {value}; it must be at least {least}"


def below_one(section: str, config, names: Iterable[str]) -> Iterator[str]:
    """Messages on probabilities and decay rates of a section that are not: 0 is allowed, 1 is not.

    Args:
      section: of `config`, for the messages.
      config: has the keys.
      names: of the keys.
    """
    for name in names:
        if not isinstance(config[name], int | float):
            yield f"{section}.{name} is {config[name]!r}; it must be a number"
        elif not 0 <= config[name] < 1:
            yield f"{section}.{name} is {config[name]}; it must be at least 0 and below 1"


def not_among(key: str, value, choices: Iterable[str]) -> Iterator[str]:
    """A message when a value is none of the choices, with the nearest of them.

    Args:
      key: for the message.
      value: of the key.
      choices: what it may be.
    """
    choices = list(choices)
    if value not in choices:
        nearest = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"it is one of {', '.join(map(repr, choices))}"
        yield f"{key} is {value!r}; {hint}"


def is_range(value, least: float, most: float) -> bool:
    """Whether a value of a config is (low, high), within bounds and in order."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(x, int | float) for x in value) and least <= value[0] <= value[1] <= most


def nearest_key(key: str, keys: list[str]) -> str | None:
    """The key that was meant: the same last word in another section, or else the most similar spelling."""
    last = key.rpartition(".")[2]
    same_word = [candidate for candidate in keys if candidate.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(key, same_word or keys, n=1, cutoff=0.0 if same_word else 0.5)
    return nearest[0] if nearest else None


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def around(value: int, candidates: Iterable[int]) -> str:
    """The nearest candidates below and above: "8 or 16"."""
    candidates = list(candidates)
    below = [c for c in candidates if c < value][-1:]
    above = [c for c in candidates if c > value][:1]
    return " or ".join(map(str, below + above))


def nearest_multiples(value: int, unit: int) -> str:
    """Multiples of a unit around a value: "210 or 224"."""
    return around(value, [unit * n for n in range(1, value // unit + 2)])


def heads_problems(section: str, heads: int, width: int, even: bool = False) -> Iterator[str]:
    """A message when a number of heads does not divide a width, or gives heads of an odd width that must be even.

    Args:
      section: of the two keys, for the message.
      heads, width: their values.
      even: whether a head must be evenly wide, as for xPos.
    """
    fitting = [d for d in divisors(width) if not even or width // d % 2 == 0]
    if heads in fitting:
        return
    hint = f"; try {around(heads, fitting)}" if fitting else ""
    if width % heads:
        yield f"{section}.heads is {heads}, which does not divide width {width}{hint}"
    else:
        yield f"{section}.heads is {heads}, so a head is {width // heads} wide; xPos needs an even number{hint}"
