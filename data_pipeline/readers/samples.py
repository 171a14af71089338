"""Samples: files that share a name up to the suffix, as webdataset and img2dataset write them.

https://github.com/webdataset/webdataset, https://github.com/rom1504/img2dataset (`img2dataset/writer.py`)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data_pipeline.documents import Media, Place, RecordError
from data_pipeline.media import MEDIA, host
from data_pipeline.readers.file_reader import RecordReader

# Reads a member: its bytes, and where they lie if they lie there as they are.
Read = Callable[[], tuple[bytes, Place | None]]


class SampleReader(RecordReader):
    """Base class for formats whose records are the members `<key>.jpg`, `<key>.txt`, `<key>.json`, in any order.

    The key is the name up to the last dot, folders and all: `v1.2/a.b.jpg` is the jpg of `v1.2/a.b`. (webdataset cuts
    the base name at its first dot, and makes one sample of `a.b.jpg` and `a.c.txt`.) Suffixes with a dot in them are
    known where the template names them: with `{seg.png:image}`, `a.seg.png` belongs to `a`. Upper case is lower case.
    Members without a suffix, and hidden ones, are passed over.

    Fields of the template:

        {image}, {audio}               the member with a suffix of that modality, also as {image:image}
        {jpg}, {flac}, {bin:image}     the member of that suffix, as media
        {txt}                          text, without the newlines at its end
        {json.caption}                 a key of the json; where its `status` says that img2dataset failed, an error
    """

    def __init__(self, split: str, splits: dict[str, str], template: str, learned: Sequence[str] = ()):
        self._fields = {}
        super().__init__(split, splits, template, learned)
        self._dotted = sorted((field for field in self._fields if "." in field), key=len, reverse=True)

    def kind_of(self, field: str, spec: str) -> str:
        suffix = "." + field.rsplit(".", 1)[-1]
        by_name = (name for name in MEDIA if field == name or suffix in host(name).SUFFIXES)
        kind = self._fields[field] = super().kind_of(field, spec) or next(by_name, "")
        return kind

    def media(self, path: str, field: str, kind: str, value: Any) -> bytes | Media:
        return Media(kind, *value()) if callable(value) else super().media(path, field, kind, value)

    def samples(self, members: Iterable[tuple[str, Read]]) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        """The key of each sample, in the order of their first members, and its record or what is wrong with it."""
        samples = {}
        for name, read in members:
            key, suffix = self._parted(name)
            if key and suffix:
                sample = samples.setdefault(key, {})
                sample[suffix] = None if suffix in sample else read
        for key, members in samples.items():
            try:
                yield key, self._record(members)
            except RecordError as error:
                yield key, error

    def _parted(self, name: str) -> tuple[str, str]:
        name = name.removeprefix("./")
        folder, slash, base = name.rpartition("/")
        if base.startswith("."):
            return "", ""
        suffix = next((s for s in self._dotted if base.lower().endswith(f".{s}")), None)
        stem = base[: -len(suffix) - 1] if suffix else base.rpartition(".")[0]
        return folder + slash + stem if stem else "", base[len(stem) + 1 :].lower()

    def _record(self, members: dict[str, Read | None]) -> dict[str, Any]:
        if twice := [suffix for suffix, read in members.items() if read is None]:
            raise RecordError("", f"has more than one {', '.join(twice)}")
        record = dict(members)
        if "json" in members:
            record["json"] = _json(members["json"]()[0])
        for field, kind in self._fields.items():
            if field == kind:
                record |= _of_kind(kind, members)
            elif not kind and field in members and field != "json":
                record[field] = _text(members[field]()[0], field)
            if field not in record and field.split(".")[0] not in record:
                hint = "; a tar in a tar has to be unpacked" if "tar" in members else ""
                raise RecordError("", f"has no {field}, only {', '.join(members)}{hint}")
        return record


def _of_kind(kind: str, members: dict[str, Read]) -> dict[str, Read]:
    found = [suffix for suffix in members if f".{suffix}" in host(kind).SUFFIXES]
    if len(found) > 1:
        raise RecordError("", f"has {' and '.join(found)}; say which in the template, as {{{found[0]}:{kind}}}")
    return {kind: members[found[0]]} if found else {}


def _text(data: bytes, suffix: str) -> str:
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RecordError("", f"its {suffix} is no UTF-8 ({error.reason} at byte {error.start})") from error


def _json(data: bytes) -> Any:
    import orjson

    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:  # no JSON, or no UTF-8
        raise RecordError("", f"its json is no JSON: {error}") from error
    if isinstance(found, dict) and str(found.get("status")).startswith("failed"):
        raise RecordError("", f"its status is {found['status']}: {found.get('error_message')}")
    return found
