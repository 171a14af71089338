"""The most memory that `kosmos import` of KOSMOS-1's 1.6 billion parameters takes: all of them, or CLIP's alone.

    python benchmarks/import_memory.py    # needs 15 GB of disk

Random weights under transformers' names for Kosmos-2 are written first, one tensor at a time. `clip` takes the encoder
from them and draws all else as training would. The import is a process of its own; its peak of resident memory is the
kernel's (VmHWM: what it allocated and what it has mapped of files).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from configs import kosmos2
from kosmos_jax.config import apply_overrides
from kosmos_jax.interop.formats import EXPORTS
from kosmos_jax.interop.tensors import write_tensors
from kosmos_jax.interop.weights import tensors_of

GIB = 2**30


def write_source(folder: Path) -> int:
    """A folder as transformers has it: random float32 weights, config.json, a tokenizer; returns the parameters."""
    model, target = apply_overrides(kosmos2.get_config(), []).model, EXPORTS["hf-kosmos2"]
    draw = np.random.default_rng(0)

    shapes, _ = tensors_of(None, model, target)
    write_tensors(folder, shapes, lambda name: draw.standard_normal(shapes[name], np.float32), "float32")
    (folder / "config.json").write_text(json.dumps(target.config(model, "float32")))
    pieces = sentencepiece_model_pb2.ModelProto()
    kinds = pieces.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        pieces.pieces.add(piece=piece, type=kind)
    for i in range(64_000 - 3):
        pieces.pieces.add(piece=f"\u2581{i}", score=-i, type=kinds.NORMAL)
    (folder / "sentencepiece.bpe.model").write_bytes(pieces.SerializeToString())
    return sum(map(math.prod, shapes.values()))


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "source")
        source.mkdir()
        count = write_source(source)
        for kind in ("hf-kosmos2", "clip"):
            out = Path(place, kind)
            command = [sys.executable, "-m", "kosmos_jax.cli", "import", "--from", kind, "--source", str(source)]
            start = time.perf_counter()
            process = subprocess.Popen([*command, "--out", str(out)])
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                sys.exit(f"the import of {kind} failed")
            seconds, peak = time.perf_counter() - start, usage.ru_maxrss * 1024
            print(
                f"{kind}: {count:,} parameters, {4 * count / GIB:.1f} GiB: "
                f"{peak / GIB:.1f} GiB at most, {seconds:.0f} s"
            )


if __name__ == "__main__":
    main()
