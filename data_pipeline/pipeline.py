"""Batches ahead of time: tf.data runs `Mixture.batch` for the next steps while the current one computes."""

import atexit
import collections
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.documents import DataError, Text
from data_pipeline.mixture import Mixture
from data_pipeline.prepare.job import too_many_skipped
from data_pipeline.prepare.sources import read, source_fingerprint
from data_pipeline.tensorflow_alone import tensorflow
from data_pipeline.tokenizer import Tokenizer
from kosmos_jax.modality import modalities

log = logging.getLogger(__name__)
TRAINING_CHARACTERS = 20_000_000


def batches(
    mixture: Mixture,
    first_step: int,
    last_step: int | None = None,
    rows: slice = slice(None),
    items: Mapping[str, slice] | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray], dict[str, Any]]]:
    """Yields (step, arrays, stats) for first_step, first_step + 1, ... up to but without last_step.

    Starting at step N costs what starting at 0 does: nothing is skipped over, nor shuffled in a buffer. Up to
    `data.decode_threads` steps are read at the same time and `data.prefetch` more wait; the order is kept.

    Args:
      mixture: what is in them.
      first_step, last_step: the steps; without a last one there is no end.
      rows, items: the part of each microbatch that this process holds, see `Mixture.batch`.

    Yields:
      stats: text_fill, item_fill, and skipped: how many documents of this batch were blanked, by "source/kind".

    Raises:
      DataError: more than `data.max_skipped` different records could not be read.
    """
    # Here, not in the thread that takes the first batch: while TensorFlow starts, no thread's messages are shown.
    tf = tensorflow()
    stream = _batches(tf, mixture, first_step, last_step, rows, items)
    _unfinished.add(stream)
    return stream


_unfinished: weakref.WeakSet = weakref.WeakSet()
_interpreter_ends = threading.Event()


@atexit.register
def _close_unfinished():
    # TensorFlow waits for its threads when the interpreter ends, and they would wait for the interpreter: for ever.
    _interpreter_ends.set()
    for stream in list(_unfinished):
        while stream.gi_frame is not None:
            try:
                stream.close()
            except ValueError:  # another thread is just taking a batch, and will find that this was the last
                time.sleep(0.01)


def _batches(tf, mixture, first_step, last_step, rows, items):
    data, failures = mixture.config.data, {}
    specs = tf.nest.flatten(mixture.arrays)

    def load(step: np.int64):
        # A Python error inside a graph would reach the user as a page of TensorFlow; it is carried round it instead.
        try:
            arrays, stats = mixture.batch(int(step), rows, items)
        except Exception as error:
            failures[int(step)] = error
            return [np.int64(step), "", *(np.zeros(0, spec.dtype) for spec in specs)]
        return [np.int64(step), json.dumps(stats), *tf.nest.flatten(arrays)]

    types = [tf.int64, tf.string, *(tf.as_dtype(spec.dtype) for spec in specs)]
    stop = np.iinfo(np.int64).max if last_step is None else last_step
    dataset = tf.data.Dataset.range(first_step, stop)
    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(lambda step: tf.numpy_function(load, [step], types)),
        num_parallel_calls=data.decode_threads,
        deterministic=True,
    ).prefetch(data.prefetch)
    options = tf.data.Options()
    options.threading.private_threadpool_size = data.decode_threads
    options.experimental_optimization.inject_prefetch = False
    # Nothing here is tuned, and closing the iterator can wait a minute for the thread that would.
    options.autotune.enabled = False
    bad, last = {}, ""
    for step, stats, *values in dataset.with_options(options).as_numpy_iterator():
        if _interpreter_ends.is_set():
            return
        if int(step) in failures:
            raise failures[int(step)]
        stats = json.loads(stats)
        for source, kind, where, message in stats["skipped"]:
            if where not in bad:
                log.warning("skipped: %s", message)
            bad[where], last = f"{source}/{kind}", message
        stats["skipped"] = dict(collections.Counter(f"{source}/{kind}" for source, kind, _, _ in stats["skipped"]))
        total = mixture.skipped + collections.Counter(bad.values())
        if total.total() > data.max_skipped:
            raise DataError(too_many_skipped(total, data.max_skipped, last))
        yield int(step), tf.nest.pack_sequence_as(mixture.arrays, values), stats


def make_tokenizer(config: Any, cache: str | Path) -> Tokenizer:
    """The tokenizer of `config.data.tokenizer`: read from its path, or trained on the text of the training split.

    A trained one is cached in `cache`, under what it was trained on.
    """
    settings, sources, found = config.data.tokenizer, config.data.sources, modalities(config.model)
    if settings.path:
        return Tokenizer.load(settings.path, settings.kosmos2_tags, found)
    prints = [source_fingerprint(sources[name], "train") for name in sorted(sources)]
    key = "-".join(["tokenizer", str(settings.vocab_size), *prints])
    file = Path(cache) / f"{key}.model"
    if not file.is_file():
        texts = (text for name in sorted(sources) for text in _texts(sources[name]))
        trained = Tokenizer.train(texts, settings.vocab_size)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        trained.save(temporary)
        os.replace(temporary, file)
    return Tokenizer.load(file, settings.kosmos2_tags, found)


def _texts(source) -> Iterator[str]:
    """Text of documents in order, up to `TRAINING_CHARACTERS`: enough for any vocabulary that is trained here."""
    characters = 0
    for document in read(source, "train"):
        for part in document.parts:
            if isinstance(part, Text):
                yield part.text
                characters += len(part.text)
        if characters > TRAINING_CHARACTERS:
            return
