"""The demo's data, small enough for a test, and a source made of a list."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.documents import Document, RecordError


def demo_config(**changes) -> ConfigDict:
    """The demo's data, small enough for a test; `changes` are flattened keys with __ for a dot."""
    config = ConfigDict(
        {
            "seed": 0,
            "model": {"connector": {"tokens": 8}, "vision": {"image_size": 32}},
            "training": {"microbatches": 1},
            "data": {
                "seq_len": 256,
                "batch_rows": 8,
                "isolate_documents": True,
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


def _source(kind: str, share: float, images_per_row: int) -> dict:
    augment = {"crop_scale": (0.85, 1.0), "rotate": 10.0}
    return {"kind": kind, "share": share, "images_per_row": images_per_row, "augment": augment}


@dataclasses.dataclass
class ListSource:
    """Documents from a list; a str among them is a record that cannot be read, for that reason."""

    documents: list
    fingerprint: str = "list"

    def __len__(self):
        return len(self.documents)

    def __getitem__(self, i):
        if isinstance(self.documents[i], str):
            raise RecordError(f"list[{i}]", self.documents[i])
        return Document(self.documents[i], f"list[{i}]")


def equal(a: dict, b: dict) -> bool:
    """The same arrays, bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
