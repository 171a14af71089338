"""The loss on held-out batches, by source."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from kosmos_jax.parallel.distributed import Interrupted
from kosmos_jax.training.feed import open_feed
from kosmos_jax.training.loss import layout_on
from kosmos_jax.training.step import loss_sums


def validation_losses(params, config, mixture, mesh, loss_of_batch, stop) -> dict[str, float]:
    """Mean loss of each source over `training.eval_batches` held-out batches.

    Args:
      stop: function, asked after each batch whether to leave off.

    Raises:
      Interrupted: it said so.
    """
    sums = np.zeros((len(mixture.names), 2))
    feed = open_feed(mixture, mesh, 0, config.training.eval_batches)
    try:
        for _, batch, _ in feed:
            sums += np.asarray(loss_of_batch(params, batch))
            if stop():
                raise Interrupted
    finally:
        feed.close()
    return {f"val/{name}": total / max(count, 1) for name, (total, count) in zip(mixture.names, sums, strict=True)}


def make_loss_of_batch(graph, config, sources: int, mesh):
    """jit of (params, batch) -> float32[sources, 2], without dropout: the held-out twin of the training loss.

    Args:
      graph: the model's structure.
      config: the complete config.
      sources: how many.
      mesh: of the run.
    """

    layout = layout_on(mesh)

    def loss_of_batch(params, batch):
        def body(sums, microbatch):
            return sums + loss_sums(graph, params, microbatch, sources, config.training.loss_chunk, layout)[1], None

        return jax.lax.scan(body, jnp.zeros((sources, 2)), batch)[0]

    return jax.jit(loss_of_batch, out_shardings=NamedSharding(mesh, P()))
