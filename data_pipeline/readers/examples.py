"""Serialized tf.train.Examples of a file, front to back, whatever format they are in."""

import functools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError

from data_pipeline.documents import FileError, RecordError
from data_pipeline.files import decompressed, opened

# What parsing a damaged example raises: no protobuf, no UTF-8, a feature that is not there.
DAMAGED = (DecodeError, ValueError, LookupError, struct.error, zlib.error)
ARRAY_RECORDS = 256


def serialized(path: str, file_format: str) -> Iterator[bytes | RecordError]:
    """The records of a file; in place of one that is damaged, what is wrong with it, without its name.

    Args:
      path: of the file.
      file_format: as TFDS names them, "tfrecord", "array_record", "parquet" or "riegeli".

    Raises:
      FileError: nothing more can be read.
      OSError: the disk or the network fails.
    """
    formats = {"tfrecord": tf_records, "array_record": array_records, "parquet": _parquet_records}
    return formats.get(file_format, functools.partial(_records_by_tfds, file_format=file_format))(path)


def tf_records(path: str) -> Iterator[bytes | RecordError]:
    """Of a TFRecord file: uint64 length, its checksum, the data, their checksum (tensorflow/core/lib/io/record_writer).

    TensorFlow's own reader ends at the first damaged record; where lengths are sound the next one can be read.
    """
    with decompressed(path) as file:
        while header := file.read(12):
            if len(header) < 12 or _masked_crc(header[:8]) != header[8:]:
                raise FileError(path, "it was cut off, or the length of a record is damaged")
            (length,) = struct.unpack("<Q", header[:8])
            data, checksum = file.read(length), file.read(4)
            if len(checksum) < 4:
                raise FileError(path, "it was cut off")
            yield data if _masked_crc(data) == checksum else RecordError("", "its checksum is wrong")


def _masked_crc(data: bytes) -> bytes:
    import google_crc32c

    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def array_records(path: str) -> Iterator[bytes | RecordError]:
    """Of an ArrayRecord file. The library raises RuntimeError for a failing disk and for a damaged file alike."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(path)
        for first in range(0, reader.num_records(), ARRAY_RECORDS):
            for record in reader.read(first, min(first + ARRAY_RECORDS, reader.num_records())):
                yield record or RecordError("", "is empty")  # the library's answer for a file that was cut off
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        with opened(path) as file:  # raises if it is the disk that fails
            while file.read(1 << 24):
                pass
        raise FileError(path, f"it is damaged ({error})") from error


def _parquet_records(path: str) -> Iterator[bytes]:
    from data_pipeline.readers.parquet import rows

    return (row["data"] for row in rows(path, ["data"]))


def _records_by_tfds(path: str, file_format: str) -> Iterator[bytes]:
    from tensorflow_datasets.core import file_adapters

    from data_pipeline.tensorflow_alone import tensorflow

    tf = tensorflow()
    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat(file_format)]
    try:
        yield from adapter.make_tf_data(path).as_numpy_iterator()
    except tf.errors.DataLossError as error:
        raise FileError(path, f"it is damaged ({error.message})") from error
    except tf.errors.OpError as error:
        raise OSError(f"{path} cannot be read: {error.message}") from error


def parsed(record: bytes) -> Any:
    """Features of a serialized example by name, each a `tf.train.Feature`.

    Raises:
      DecodeError: it is none.
    """
    return _example_type().FromString(record).features.feature


@functools.cache
def _example_type():
    from data_pipeline.tensorflow_alone import tensorflow

    return tensorflow().train.Example


def first_value(feature) -> Any:
    """The first value of a feature: bytes, an int or a float; None if it has none."""
    form = feature.WhichOneof("kind")
    values = getattr(feature, form).value if form else ()
    return values[0] if values else None
