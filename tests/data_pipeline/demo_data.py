"""The demo's data, small enough for a test, and a source made of a list."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipeline.documents import Document, Media, RecordError, Text
from data_pipeline.readers import Listed, digest
from kosmos_jax.modality import Modality


def demo_config(**changes) -> ConfigDict:
    """The demo's data, small enough for a test; `changes` are flattened keys with __ for a dot."""
    config = ConfigDict(
        {
            "seed": 0,
            "model": {"perception": {"image": {"tokens": 8, "shape": (32, 32, 3), "dtype": "uint8"}}},
            "training": {"microbatches": 1, "steps": 100},
            "data": {
                "seq_len": 256,
                "batch_rows": 8,
                "isolate_documents": True,
                "bundle_rows": 4,
                "max_skipped": 10,
                "decode_threads": 2,
                "prefetch": 1,
                "tokenizer": {"path": "", "vocab_size": 800, "kosmos2_tags": False},
                "sources": {
                    "text": _source("pydoc", 0.25, 0),
                    "captions": _source("digits", 0.25, 15),
                    "interleaved": _source("digit_documents", 0.5, 20),
                },
            },
        }
    )
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def _source(kind: str, share: float, images: int) -> dict:
    augment = {"image": {"crop_scale": (0.85, 1.0), "rotate": 10.0}}
    return {"kind": kind, "share": share, "per_row": {"image": images}, "augment": augment}


def image(tokens: int = 2, size: int = 32) -> Modality:
    return Modality("image", tokens, (size, size, 3), "uint8")


def parts(*given) -> tuple:
    """A document's parts: str is text, bytes an image, anything else itself."""
    return tuple(Text(x) if isinstance(x, str) else Media("image", x) if isinstance(x, bytes) else x for x in given)


@dataclasses.dataclass
class ListSource(Listed):
    """Documents from a list; a str among them is a record that cannot be read, for that reason."""

    documents: list

    @property
    def fingerprint(self):
        return digest(self.documents)

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, i):
        if isinstance(self.documents[i], str):
            raise RecordError(f"list[{i}]", self.documents[i])
        return Document(parts(*self.documents[i]), f"list[{i}]")


def equal(a: dict, b: dict) -> bool:
    """The same arrays, bit for bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )
