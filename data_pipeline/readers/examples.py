"""Records that are tf.train.Examples: named lists of bytes, integers or floats.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.documents import RecordError
from data_pipeline.readers.file_reader import RecordReader

# The number of each record in its file, and its bytes or what is wrong with it. A FileError may stand for many.
Serialized = Iterator[tuple[int, bytes | RecordError]]


class ExampleReader(RecordReader):
    """Base class for files of Examples. A format has `serialized(path)`.

    Fields of the template are features with one value: `{txt}` is text or a number, `{jpg:image}` the bytes of a file.
    """

    def serialized(self, path: str) -> Serialized:
        """The records of a file in order."""
        raise NotImplementedError

    def records(self, path: str) -> Iterator[tuple[str, Mapping[str, Any] | RecordError]]:
        for number, data in self.serialized(path):
            yield f"{path}[{number}]", data if isinstance(data, RecordError) else _values(data)


def features(data: bytes) -> Mapping[str, Any]:
    """The `tf.train.Feature` of each name.

    Raises:
      RecordError: without the record's name; the bytes are no Example.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # TensorFlow itself takes seconds to start

    if not data:
        raise RecordError("", "is empty")
    try:
        return tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise RecordError("", f"is no tf.train.Example ({error})") from error


def _values(data: bytes) -> dict[str, Any] | RecordError:
    try:
        return {name: _value(feature) for name, feature in features(data).items()}
    except RecordError as error:
        return error


def _value(feature: Any) -> Any:
    """What a feature holds: of one value itself."""
    kind = feature.WhichOneof("kind")
    found = list(getattr(feature, kind).value) if kind else []
    return found[0] if len(found) == 1 else found
