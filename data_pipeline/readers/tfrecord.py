"""TFRecord files of tf.train.Examples: text corpora, and what img2dataset wrote with --output_format tfrecord."""

import struct
from collections.abc import Sequence
from typing import BinaryIO

from data_pipeline.documents import DataError, FileError, RecordError
from data_pipeline.files import damages, decompressed
from data_pipeline.readers.examples import ExampleReader, Serialized

# Protocol buffers are not larger.
MAX_BYTES = 2**31


class TfRecord(ExampleReader):
    """Kind `tfrecord`: an Example a document, also in files with `.gz`, `.zst`, `.xz` or `.bz2`.

    Args:
      split: "train", "validation" or "test".
      splits: for each split its files, see `FileReader`.
      template: "{jpg:image}{txt}" for img2dataset's; see `ExampleReader`.
      learned: features whose text the model learns to write; all text if empty.
    """

    def __init__(self, split: str, splits: dict[str, str], template: str = "{text}", learned: Sequence[str] = ()):
        super().__init__(split, splits, template, learned)

    def serialized(self, path: str) -> Serialized:
        return serialized(path)


def serialized(path: str) -> Serialized:
    """The records of a file: uint64 length, uint32 checksum of the length, data, uint32 checksum of the data.

    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details. A record whose data are damaged
    costs itself, a length that is damaged the rest of the file (TensorFlow's own reader ends at either).
    """
    number = 0
    try:
        with decompressed(path) as file:
            while header := file.read(12):
                yield number, _record(file, header)
                number += 1
    except FileError as error:
        yield number, FileError(path, error.why)
    except DataError:
        raise
    except damages() as error:
        yield number, FileError(path, f"cannot be read to its end ({type(error).__name__}: {error})")


def _record(file: BinaryIO, header: bytes) -> bytes | RecordError:
    """Raises: FileError: nobody knows where the next one begins."""
    if len(header) < 12:
        raise FileError("", "is cut off in the length of a record")
    length, checksum = struct.unpack("<QI", header)
    if checksum != _masked_crc(header[:8]) or length > MAX_BYTES:
        raise FileError("", "is damaged, or no TFRecord file: the length of a record has a wrong checksum")
    data, checksum = file.read(length), file.read(4)
    if len(checksum) < 4:
        raise FileError("", f"is cut off in a record of {length} bytes")
    if struct.unpack("<I", checksum)[0] != _masked_crc(data):
        return RecordError("", "is damaged: its checksum is another one")
    return data


def _masked_crc(data: bytes) -> int:
    """CRC-32C, turned and moved so that checksums of checksums are none by chance."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
