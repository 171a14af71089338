"""From the host's batches to arrays on the mesh, while the step before still runs."""

import queue
import threading
import time
from collections.abc import Iterator
from functools import partial

import jax

from data_pipeline.pipeline import batches
from kosmos_jax.parallel.sharding import NamedSharding, P, Shardings

# How many batches wait on the devices.
DEPTH = 2


def batch_shardings(model, mesh) -> dict:
    """Sharding of every array of a batch; `model` is config.model, for the modalities."""
    names = Shardings()
    specs = dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "slots"), names.rows_abt)
    specs |= {"row_source": names.rows_ab, "media": dict.fromkeys(model.perception, names.items_an)}
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda spec: isinstance(spec, P))


def local_range(sharding, shape, axis: int) -> slice:
    """The part of `axis` that this process's devices hold, as one slice.

    Args:
      sharding: of the array.
      shape: the global one.
      axis: which one.
    """
    parts = [index[axis].indices(shape[axis]) for index in sharding.addressable_devices_indices_map(shape).values()]
    return slice(min(start for start, _, _ in parts), max(stop for _, stop, _ in parts))


def place(arrays, specs, shardings, offsets):
    """This process's part of a batch -> global arrays.

    Args:
      arrays: of numpy, the process's rows (or items) on axis 1.
      specs: the same tree of what has the global `shape`.
      shardings: the same tree of NamedSharding.
      offsets: the same tree of int: the global index of the local array's first element on axis 1.
    """

    def put(array, spec, sharding, offset):
        def local(index):
            start, stop, _ = index[1].indices(spec.shape[1])
            return array[(index[0], slice(start - offset, stop - offset), *index[2:])]

        return jax.make_array_from_callback(spec.shape, sharding, local)

    return jax.tree.map(put, arrays, specs, shardings, offsets)


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
    """A feed of this process's part of the batches first_step .. last_step - 1.

    Args:
      mixture: data_pipeline.mixture.Mixture.
      mesh: what the batches are placed on.
      first_step, last_step: the range of steps.
    """
    specs, shardings = mixture.arrays, batch_shardings(mixture.config.model, mesh)
    here = jax.tree.map(lambda spec, sharding: local_range(sharding, spec.shape, 1), specs, shardings)
    to_devices = partial(place, specs=specs, shardings=shardings, offsets=jax.tree.map(lambda part: part.start, here))
    return Feed(batches(mixture, first_step, last_step, rows=here["tokens"], items=here["media"]), to_devices)
