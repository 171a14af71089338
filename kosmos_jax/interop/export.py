"""`kosmos export`: a checkpoint as a folder that PyTorch loads.

Weights go from the sharded checkpoint to the file one tensor at a time. The folder gets its name when it is complete:
an export that was interrupted leaves nothing that looks like one.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from kosmos_jax import checkpoint
from kosmos_jax.errors import UserError, refuse_address
from kosmos_jax.interop import processor
from kosmos_jax.interop.formats import EXPORTS
from kosmos_jax.interop.stored import StoredModel
from kosmos_jax.interop.tensors import write_tensors
from kosmos_jax.interop.weights import tensors_of

TORCH_FILES = Path(__file__).parent / "torch_files"
CODE = {"torch": "kosmos_torch.py", "hf-remote-code": "[!_]*.py"}


def export(path, to: str, out, dtype: str = "float32", max_shard_bytes: int = 5 * 10**9) -> checkpoint.Record:
    """Writes a checkpoint as `to` into the new folder `out`.

    Args:
      path: a workdir, its checkpoints/, or one step's folder.
      to: a key of EXPORTS.
      out: a folder that does not exist or is empty.
      dtype: "float32", "bfloat16" or "float16", of the weights.
      max_shard_bytes: of one file of weights.

    Returns:
      What the checkpoint says of itself.

    Raises:
      UserError: no checkpoint or a damaged one, a model that the format cannot hold, values that the dtype cannot
        hold, or a folder in the way.
    """
    form = EXPORTS[to]
    record = checkpoint.read_record(path)
    refusal = form.refusal(record.config.model)
    if refusal:
        raise UserError(f"--to {to} cannot hold this model: {refusal}")
    shapes, read = tensors_of(StoredModel(record.directory), record.config.model, form)
    with complete_or_absent(out) as folder:
        (folder / "config.json").write_text(json.dumps(form.config(record.config.model, dtype), indent=2) + "\n")
        for file in TORCH_FILES.glob(CODE[to]) if to in CODE else ():
            shutil.copyfile(file, folder / file.name)
        processor.write_files(folder, record, to)
        write_tensors(folder, shapes, read, dtype, max_shard_bytes, f"writing {to}")  # last, because it takes long
    return record


@contextmanager
def complete_or_absent(out):
    """A folder to write in that is given the name `out` at the end, and is deleted if anything goes wrong.

    Only a process that is killed leaves it, as `out`.unfinished-PID.

    Raises:
      UserError: `out` is there and not empty, or cannot be made.
    """
    refuse_address("--out", out)
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; name a new folder")
    partial = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error}") from error
    try:
        yield partial
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
