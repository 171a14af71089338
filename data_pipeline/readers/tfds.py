"""Any TensorFlow Datasets dataset that is prepared, by name, in whatever file format."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.documents import DataError, Document, Media, RecordError, Text
from data_pipeline.readers import digest
from data_pipeline.readers.examples import DAMAGED, parsed, serialized
from data_pipeline.readers.file_reader import RecordReader
from data_pipeline.readers.tfds_features import audio_problem, modality, values
from data_pipeline.template import Template, unknown
from data_pipeline.tensorflow_alone import tensorflow


class Tfds(RecordReader):
    """Kind `tfds`.

    Args:
      split: "train", "validation" or "test".
      name: as `tfds.builder` takes it, "coco_captions" or "my_dataset/config:1.0.0". The dataset must be prepared.
      splits: for each of our splits the dataset's: {"train": "train[:95%]", "validation": "train[95%:]"}.
      data_dir: where it lies; "" for TFDS's default.
      template: "{image}a photo of a {label}": text with features in braces, see `Template`. An Image or Audio is put in
        as it is, a ClassLabel by its name, Text and numbers as text.
      learned: features of the template whose text the model learns to write; all text if empty.
      interleaved: instead of a template, the names of two sequences, ("images", "texts"): a text stands for itself, an
        empty one for the next image that is not empty (in OBELICS, each position has exactly one of the two).
      sample_rate: in hertz, of Audio that does not state its own.

    Raises:
      DataError: a key is wrong; the message names it and the nearest right one.
    """

    def __init__(
        self,
        split: str,
        name: str,
        splits: dict[str, str],
        data_dir: str = "",
        template: str = "",
        learned: Sequence[str] = (),
        interleaved: Sequence[str] = (),
        sample_rate: int = 0,
    ):
        tensorflow()
        import tensorflow_datasets as tfds

        builder = tfds.builder(name, data_dir=data_dir or None)
        if not builder.is_prepared():
            raise DataError(f"dataset {name} is not in {builder.data_dir}; run `tfds build {name}` first")
        if split not in splits:
            raise DataError(f"dataset {name}: splits names no {split!r}, only {', '.join(splits)}")
        if bool(template) == bool(interleaved):
            raise DataError(f"dataset {name}: give either template or interleaved")
        if learned and interleaved:
            raise DataError(f"dataset {name}: learned names fields of a template; of interleaved, all text is learned")
        self._dataset, self._all_features, self._features = name, builder.info.features, {}
        self._rate, self._interleaved, self._template = sample_rate, tuple(interleaved), None
        if template:
            self._template = Template(template, learned, self.kind_of)
        else:
            self._medium, *others = (self.kind_of(field, "") for field in interleaved)
            if not self._medium or others != [""]:
                raise DataError(f"dataset {name}: interleaved is {self._interleaved}; name media first, then texts")

        found = builder.info.splits[splits[split]]
        self._name = f"{builder.info.full_name}:{splits[split]}"
        self._form = str(builder.info.file_format.value)
        self._instructions, before = {}, 0
        for file in found.file_instructions:
            self._instructions[file.filename] = (file.skip, file.take, before)
            before += file.take
        self._files = tuple(self._instructions)
        self._shares = dict.fromkeys(self._files, (0.0, 100.0))
        self.size = int(found.num_bytes or builder.info.dataset_size)
        files = [(Path(file.filename).name, file.skip, file.take) for file in found.file_instructions]
        self.fingerprint = digest(self._name, files, str(builder.info.dataset_size))

    def kind_of(self, field: str, spec: str) -> str:
        """The modality of a feature, which is looked up once and kept for its values."""
        known = self._all_features
        if field not in known:
            raise DataError(f"dataset {self._dataset}: feature {unknown(field, list(known))}")
        sequence = bool(self._interleaved) and hasattr(known[field], "feature")
        feature = known[field].feature if sequence else known[field]
        kind, problem = modality(feature), f"dataset {self._dataset}: feature {field!r}"
        if kind is None:
            raise DataError(f"{problem} is {feature}; only images, audio, labels, texts and numbers fit")
        if spec not in ("", kind):
            raise DataError(f"{problem} is {kind or 'text'}, not {spec}; write {{{field}}}")
        if kind == "audio" and (why := audio_problem(feature, self._rate, sequence)):
            raise DataError(f"{problem} {why}")
        self._features[field] = feature
        return kind

    def records(self, path: str) -> Iterator[tuple[str, dict[str, list] | RecordError]]:
        """The values of the features of each record."""
        skip, take, before = self._instructions[path]
        for i, record in enumerate(serialized(path, self._form)):
            if i >= skip + take:
                return
            if i >= skip:
                yield (
                    f"{self._name}[{before + i - skip}]",
                    record if isinstance(record, RecordError) else self._read(record),
                )

    def _read(self, record: bytes) -> dict[str, list] | RecordError:
        try:
            example = parsed(record)
            return {name: values(feature, example[name], self._rate) for name, feature in self._features.items()}
        except DAMAGED as error:
            return RecordError("", f"cannot be read ({type(error).__name__}: {error})")

    def documents(self, path: str) -> Iterator[Document | RecordError]:
        for where, record in self.records(path):
            try:
                if isinstance(record, RecordError):
                    raise record
                parts = self._parts(record) if self._template else self._sequence(record)
                yield Document(tuple(parts), where)
            except RecordError as error:
                yield RecordError(where, error.why)

    def _parts(self, record: dict[str, list]) -> list[Text | Media]:
        def value(field: str, kind: str) -> Any:
            if not record[field]:
                raise RecordError("", f"its {field} is empty")
            return record[field][0]

        return self._template.parts(value)

    def _sequence(self, record: dict[str, list]) -> list[Text | Media]:
        media, texts = (record[name] for name in self._interleaved)
        return interleaved([item for item in media if item], texts, self._medium, self._interleaved[0])


def interleaved(media: list[bytes], texts: list[str], kind: str, name: str) -> list[Text | Media]:
    """Texts, and the next item where a text is empty.

    Raises:
      RecordError: there are more items than empty texts; `name` is what they are called.
    """
    media, parts = list(media), []
    for text in texts:
        if text.strip():
            # Two texts in a row are two paragraphs.
            parts.append(Text("\n" + text if parts and isinstance(parts[-1], Text) else text))
        elif media:
            parts.append(Media(kind, media.pop(0)))
    if media:
        raise RecordError("", f"{len(media)} more of {name} than empty texts")
    return parts
