"""What weights and caches in eight bits cost in accuracy and save in memory.

python benchmarks/int8.py CHECKPOINT    # of the demo
"""

import argparse
import math

import jax

from kosmos_jax import load
from kosmos_jax.checkpoint import read_record
from kosmos_jax.evaluation import tasks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    checkpoint = parser.parse_args().checkpoint
    config = read_record(checkpoint).config
    for int8 in ((), ("weights",), ("cache",), ("weights", "cache")):
        model = load(checkpoint, int8=int8)
        found = [
            task(model, config, "test", examples).value
            for task, examples in ((tasks.caption, 300), (tasks.few_shot, 150), (tasks.perplexity, 30))
        ]
        device = model.engine.device
        weights = sum(x.nbytes for x in jax.tree.leaves(device._weights))
        cache = next(iter(device._pools.values()))[0].cache
        entries = math.prod(cache.branches_BS.shape)
        bytes_each = sum(x.nbytes for x in jax.tree.leaves((cache.k_BHSK, cache.v_BHSK))) // entries
        print(
            f"{' and '.join(int8) or 'none':18}caption {found[0]:.1%}  few_shot {found[1]:.1%}  "
            f"perplexity {found[2]:.2f}  weights {weights / 1e6:.2f} MB  cache {bytes_each:,} B a token"
        )


if __name__ == "__main__":
    main()
