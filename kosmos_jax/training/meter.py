"""How fast a run goes, and how much of the hardware's best that is."""

import collections
import math
import time

from kosmos_jax.parallel.hardware import peak_flops
from kosmos_jax.training.flops import step_flops


class Meter:
    """Rates of the last step: tokens, items of media and model FLOPs a second, and how long it waited for data."""

    def __init__(self, config, trainable, mixture, mesh):
        self.config = config
        self.paths = list(trainable)
        self.places = math.prod(mixture.arrays["tokens"].shape)
        self.item_places = {kind: n * mixture.microbatches for kind, n in mixture.items.items()}
        self.skipped = collections.Counter(mixture.skipped)
        peak = peak_flops(mesh.devices.flat[0])
        self.peak = peak and peak * mesh.size
        self.restart()

    def restart(self) -> None:
        """Forgets the time that passed since the last step, after something that is not training."""
        self.last = time.perf_counter()

    def since_restart(self) -> float:
        """Seconds since the numbers of a step were last read."""
        return time.perf_counter() - self.last

    def tokens(self, stats: dict) -> float:
        """Of a step: the places of its batch that hold text."""
        return stats["text_fill"] * self.places

    def rates(self, stats: dict, waited: float) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self.last = max(now - self.last, 1e-9), now
        tokens = self.tokens(stats)
        items = {kind: fill * self.item_places[kind] for kind, fill in stats["item_fill"].items()}
        self.skipped.update(stats["skipped"])
        flops = step_flops(self.config.model, self.paths, self.config.data.seq_len, tokens, items)
        numbers = {
            "step_seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "data_wait": min(waited / seconds, 1.0),
            "text_fill": stats["text_fill"],
            "skipped_documents": float(self.skipped.total()),
        }
        for kind, n in items.items():
            numbers |= {f"{kind}_items_per_second": n / seconds, f"{kind}_fill": stats["item_fill"][kind]}
        numbers |= {f"skipped/{kind}": float(count) for kind, count in self.skipped.items()}
        if self.peak:
            numbers["mfu"] = sum(flops.values()) / seconds / self.peak
            numbers |= {f"mfu/{tower.replace('/', '_')}": f / seconds / self.peak for tower, f in flops.items()}
        return numbers
