"""The filters of a source: read from the recipe that it names, and applied one after another."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.documents import DataError, Document
from data_pipeline.prepare.filters import Filter, NearDuplicates, Rejection
from data_pipeline.readers import digest
from data_pipeline.template import unknown

# Where this project's own recipes are found from any folder.
ROOT = Path(__file__).parents[2]
FORM = "write FILE.py:FUNCTION, a function without arguments that returns a list of filters"


class Recipe(NamedTuple):
    """Filters in order.

    Attributes:
      filters: each with a name of its own.
      key: changes with the file's content and what the filters read; "" where there is no recipe.
    """

    filters: tuple[Filter, ...] = ()
    key: str = ""

    @property
    def near_duplicates(self) -> bool:
        """Whether documents get signatures, to be compared when all are there."""
        return any(isinstance(each, NearDuplicates) for each in self.filters)

    def apply(self, document: Document) -> tuple[Document | None, list[tuple[str, str]]]:
        """The document that is left, None if none is, and what the filters did: (name, why) of the one that rejected
        it, (name, "") of those that changed it.

        Raises:
          RecordError: of the document.
          DataError: a filter fails, which is a mistake in it.
        """
        done = []
        for each in self.filters:
            try:
                after = each.apply(document)
            except DataError:
                raise
            except Exception as error:
                raise DataError(
                    f"{document.where}: the filter {each.name} fails: {type(error).__name__}: {error}"
                ) from error
            if isinstance(after, Rejection):
                return None, [*done, (each.name, after.why)]
            if after is not document:
                done.append((each.name, ""))
            document = after
        return document, done


def load_recipe(address: str) -> Recipe:
    """The recipe "FILE.py:FUNCTION"; one without filters of "".

    Raises:
      DataError: there is no such file or function, or it returns something else.
    """
    if not address:
        return Recipe()
    name, _, function = address.rpartition(":")
    places = [Path(name).expanduser(), ROOT / name] if name else []
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise DataError(f"recipe {address}: there is no file {name or address}; {FORM}")
    try:
        functions = {n: each for n, each in runpy.run_path(str(file)).items() if callable(each) and n[0].islower()}
        if function not in functions:
            raise DataError(f"recipe {address}: {unknown(function, sorted(functions))}")
        filters = functions[function]()
    except DataError:
        raise
    except Exception as error:  # whatever a person's file raises
        raise DataError(f"recipe {address}: {type(error).__name__}: {error}") from error
    return Recipe(_checked(address, filters), _key(file, function, filters))


def _checked(address: str, filters: Sequence[Filter]) -> tuple[Filter, ...]:
    if not isinstance(filters, list | tuple):
        raise DataError(f"recipe {address} returns {type(filters).__name__}; {FORM}")
    names = [getattr(each, "name", None) for each in filters]
    for each, name in zip(filters, names, strict=True):
        if not isinstance(name, str) or not callable(getattr(each, "apply", None)):
            raise DataError(f"recipe {address}: {each!r} has no name and apply(document)")
        if names.count(name) > 1:
            raise DataError(f"recipe {address} has {names.count(name)} filters with the name {name}")
    return tuple(filters)


def _key(file: Path, function: str, filters: Sequence[Filter]) -> str:
    return digest(file.read_bytes(), function, [getattr(each, "fingerprint", "") for each in filters])
