"""Checks of a config before anything slow starts: its keys here; its values beside the code that reads them."""

from collections.abc import Iterator

from kosmos_jax.checks import nearest_key
from kosmos_jax.errors import UserError

# Sections whose keys depend on what is in them: modalities, sources, and the weights that modalities begin with.
OPEN_SECTIONS = ("model.perception.", "data.sources.", "init.")


class ConfigError(UserError, ValueError):
    """A config that cannot be right."""


def validate(config, where: str = "the config", model_only: bool = False) -> None:
    """Checks each value, and values against each other.

    Args:
      config: a complete config, see configs/kosmos1.py.
      where: the file's name, for the message.
      model_only: whether data and training need not fit the model.

    Raises:
      ConfigError: naming file, key, value and what would be right, for everything that is wrong at once.
    """
    from data_pipeline import problems as data
    from kosmos_jax.model import problems as model
    from kosmos_jax.training import problems as training

    # Each kind of check relies on the ones before it.
    found = (
        [*_key_problems(config, model.keys), *data.key_problems(config.get("data", {}))]
        or [*model.value_problems(config.model), *data.value_problems(config.data), *training.value_problems(config)]
        or [
            *model.problems(config.model),
            *([] if model_only else [*data.problems(config), *training.problems(config)]),
        ]
    )
    if found:
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in found))


def flat(tree, prefix: str = "") -> dict:
    """The values of a nested dictionary by their keys: {"model.text.width": 2048, ...}."""
    values = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}.") if hasattr(value, "items") else {f"{prefix}{key}": value}
    return values


def dotted_keys(tree) -> list[str]:
    """The keys of all values in a nested dictionary: "model.text.width"."""
    return list(flat(tree))


def _key_problems(config, perception_keys) -> Iterator[str]:
    """Keys that configs/kosmos1.py does not have, and the reverse; those of a modality depend on its encoder."""
    from configs import kosmos1

    wanted = [key for key in dotted_keys(kosmos1.get_config()) if not key.startswith(OPEN_SECTIONS)]
    modalities = config.get("model", {}).get("perception", {})
    sections = {"model.perception": modalities}
    if hasattr(modalities, "items"):
        sections |= {f"model.perception.{name}": section for name, section in modalities.items()}
    if wrong := [key for key, section in sections.items() if not hasattr(section, "items")]:
        yield from (f"{key} must be a section with keys" for key in wrong)
        return
    if modalities:
        wanted += [f"model.{key}" for key in perception_keys(config.model)]
    wanted += ["init.checkpoint"]
    allowed = [*wanted, *(f"init.{name}" for name in modalities)]
    given = [key for key in dotted_keys(config) if not key.startswith("data.sources.")]
    for key in given:
        if key not in allowed:
            if key.startswith("init."):
                yield f"{key}: the model has no model.perception.{key.removeprefix('init.')}"
                continue
            nearest = nearest_key(key, [other for other in allowed if other not in given] or allowed)
            yield f"{key} is no key of a config" + (f"; did you mean {nearest}?" if nearest else "")
    for key in wanted:
        if key not in given:
            yield f"{key} is missing; configs/kosmos1.py says what it means"
