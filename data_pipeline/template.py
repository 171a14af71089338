"""Text with fields in braces, as a document is made from one record."""

import difflib
import string
from collections.abc import Callable, Sequence

from data_pipeline.documents import DataError, Media, RecordError, Text


class Template:
    """`"{scene}Question: {question} Answer: {answer}"`, for records with those three fields.

    With `learned=("answer",)` the model learns to write the answer, and the end of the document after it; everything
    else it only reads. So such a template ends with what is learned: after a full stop of its own no end is learned.

    Args:
      template: `{name}` is a field, `{name:audio}` one that the source reads as that modality, `{{` and `}}` braces.
      learned: fields whose text the model learns to write. Empty: it learns all text.
      kind_of: of a field's name and what follows the colon, the field's modality, "" for text. It raises `DataError`
        for a field that there is not; see `unknown`.

    Attributes:
      fields: their names.

    Raises:
      DataError: the template is none, or `learned` names what is no text of it.
    """

    def __init__(self, template: str, learned: Sequence[str], kind_of: Callable[[str, str], str]):
        try:
            self._pieces = [(text, name) for text, name, _, _ in string.Formatter().parse(template)]
            fields = [piece[1:] for piece in string.Formatter().parse(template) if piece[1] is not None]
        except ValueError as error:  # of braces
            raise DataError(f"template {template!r}: {error}; write {{{{ or }}}} for a brace") from error
        for name, _, conversion in fields:
            if not name or conversion:
                form = f"{name}!{conversion}" if conversion else name
                raise DataError(f"template {template!r}: write a field as {{name}}, not as {{{form}}}")
        self._kinds = {name: kind_of(name, spec) for name, spec, _ in fields}
        self.fields, self._learned = tuple(self._kinds), tuple(learned)
        texts = [name for name, kind in self._kinds.items() if not kind]
        for name in self._learned:
            if name not in texts:
                raise DataError(f"template {template!r}, learned: {unknown(name, texts)}")

    def parts(self, value: Callable[[str, str], str | bytes | Media]) -> list[Text | Media]:
        """A record's parts; text that is learned and text that is given are never in one.

        Args:
          value: of a field's name and modality the record's text, or the bytes of its file, or a `Media` of them.

        Raises:
          RecordError: a file is empty, or nothing that is to be learned has a letter. It has no name of the record yet.
        """
        values = {name: value(name, kind) for name, kind in self._kinds.items()}
        parts = []
        for text, name in self._pieces:
            parts.append(Text(text, not self._learned))
            if name is None:
                continue
            if not self._kinds[name]:
                parts.append(Text(values[name], not self._learned or name in self._learned))
            elif isinstance(values[name], Media):
                parts.append(values[name])
            elif values[name]:
                parts.append(Media(self._kinds[name], values[name]))
            else:
                raise RecordError("", f"its {name} is empty")
        if self._learned and not any(values[name].strip() for name in self._learned):
            raise RecordError("", f"nothing in it is learned: {', '.join(self._learned)} is empty")
        return joined(parts)


def joined(parts: Sequence[Text | Media]) -> list[Text | Media]:
    """Texts that follow each other as one, where both are learned or neither; empty ones left out."""
    found = []
    for part in parts:
        if isinstance(part, Text) and not part.text:
            continue
        if isinstance(part, Text) and found and isinstance(found[-1], Text) and found[-1].supervised == part.supervised:
            part = Text(found.pop().text + part.text, part.supervised)
        found.append(part)
    return found


def unknown(name: str, known: Sequence[str]) -> str:
    """A message: "'capton' is none of caption, label; did you mean caption?"."""
    near = difflib.get_close_matches(name, known, 1)
    return f"{name!r} is none of {', '.join(known)}" + (f"; did you mean {near[0]}?" if near else "")
