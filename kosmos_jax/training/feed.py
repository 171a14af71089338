"""From the host's batches to arrays on the mesh, while the step before still runs."""

import queue
import threading
import time
from collections.abc import Iterator
from functools import partial

import jax

from data_pipeline.pipeline import batches
from kosmos_jax.parallel.sharding import NamedSharding, Shardings

# How many batches wait on the devices.
DEPTH = 2


def batch_shardings(mesh, shardings=None) -> dict[str, NamedSharding]:
    """Sharding of every array of a batch."""
    names = Shardings() if shardings is None else shardings
    specs = dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "slots"), names.rows_abt)
    specs |= {"row_source": names.rows_ab, "images": names.images_anhwc}
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def local_range(sharding, shape, axis: int) -> slice:
    """The part of `axis` that this process's devices hold, as one slice."""
    parts = [index[axis].indices(shape[axis]) for index in sharding.addressable_devices_indices_map(shape).values()]
    return slice(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


def place(arrays, shapes, shardings, offsets) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays.

    Args:
      arrays: name -> numpy array: the process's rows (or images) on axis 1.
      shapes: name -> global shape.
      shardings: name -> NamedSharding.
      offsets: name -> the global index of the local arrays' first element on axis 1.
    """

    def local(name, index):
        start, stop, _ = index[1].indices(shapes[name][1])
        return arrays[name][(index[0], slice(start - offsets[name], stop - offsets[name]), *index[2:])]

    return {
        name: jax.make_array_from_callback(shapes[name], shardings[name], lambda index, name=name: local(name, index))
        for name in arrays
    }


class Feed:
    """Iterates over (step, batch on the mesh, host statistics); a thread stays `DEPTH` batches ahead.

    Attributes:
      waited: seconds for which the last `next` had to wait.
    """

    def __init__(self, host_batches: Iterator, to_devices):
        self.waited = 0.0
        self._queue = queue.Queue(maxsize=DEPTH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(host_batches, to_devices), daemon=True)
        self._thread.start()

    def _put(self, item) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _fill(self, host_batches, to_devices):
        try:
            for step, arrays, stats in host_batches:
                if not self._put((step, to_devices(arrays), stats)):
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001  It belongs to the thread that reads, wherever it came from.
            self._put(error)

    def __iter__(self):
        return self

    def __next__(self):
        start = time.perf_counter()
        item = self._queue.get()
        self.waited = time.perf_counter() - start
        if item is None:
            raise StopIteration
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)


def open_feed(mixture, mesh, first_step: int, last_step: int) -> Feed:
    """A feed of this process's part of the batches first_step .. last_step - 1."""
    shardings, shapes = batch_shardings(mesh), mixture.shapes
    rows = local_range(shardings["tokens"], shapes["tokens"], 1)
    images = local_range(shardings["images"], shapes["images"], 1)
    offsets = {name: images.start if name == "images" else rows.start for name in shapes}
    to_devices = partial(place, shapes=shapes, shardings=shardings, offsets=offsets)
    return Feed(batches(mixture, first_step, last_step, rows=rows, images=images), to_devices)
