"""What a run begins with: its folder, its data, and weights that are fresh, given, or of the newest checkpoint."""

import errno
import fcntl
import json
import logging
import time
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import jax

from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import make_tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.config import differences
from kosmos_jax.errors import PassingError, UserError, from_os
from kosmos_jax.parallel.mesh import row_shards
from kosmos_jax.paths import as_path, in_bucket, storage_errors
from kosmos_jax.training.compile import Step
from kosmos_jax.training.resume import resume
from kosmos_jax.training.spool import Spool, owner
from kosmos_jax.training.state import initial_state, replace_parameters

log = logging.getLogger(__name__)
# How long the run before may take to end: a scheduler can be quick.
LOCK_SECONDS = 10


@contextmanager
def claim_workdir(workdir):
    """The `Spool` of `workdir`, a folder that is made when missing, for this run alone; process 0 holds its lock.

    Raises:
      UserError: it cannot be written.
      PassingError: another run is using it.
    """
    workdir = as_path(workdir, "--workdir")
    lock = nullcontext()
    try:
        if not in_bucket(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            lock = (workdir / "lock").open("a+") if jax.process_index() == 0 else lock
        spool = Spool(workdir)
    except storage_errors() as error:
        raise from_os(f"--workdir {workdir} cannot be written", error) from error
    with lock as file, closing(spool):
        if file:
            _lock(file, workdir)
        yield spool


def _lock(file, workdir: Path) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                file.seek(0)
                raise PassingError(
                    f"--workdir {workdir}: another run is using it ({file.read().strip() or 'unknown'}). Stop that "
                    "one, or take another --workdir"
                ) from None
            time.sleep(0.5)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL):
                raise
            log.warning("%s cannot be locked (%s): see to it that one run alone uses it", workdir, error.strerror)
            return
    file.truncate(0)
    print(owner(), file=file)
    file.flush()


def open_data(config, cache, mesh):
    """Tokenizer, training mixture and held-out mixture.

    Args:
      config: the complete config.
      cache: folder of indexes and row plans.
      mesh: of the run.

    Raises:
      UserError: the model's vocabulary is not the tokenizer's, or data cannot be used.
    """
    tokenizer, wanted = make_tokenizer(config, cache), config.model.text.vocab_size
    if tokenizer.size != wanted:
        raise UserError(
            f"the tokenizer has {tokenizer.size} ids and model.text.vocab_size is {wanted}; "
            f"set --config.model.text.vocab_size={tokenizer.size}"
        )
    return tokenizer, *(Mixture(config, tokenizer, split, cache, row_shards(mesh)) for split in ("train", "validation"))


def given_parameters(config, abstract, shardings) -> dict[str, jax.Array]:
    """What `config.init` names, on the mesh: each process reads only what it holds.

    Args:
      config: the complete config.
      abstract, shardings: TrainState of shapes and of shardings.

    Raises:
      UserError: it cannot be read or is of another model.
    """
    wanted = checkpoint.placed(abstract.parameters, shardings.parameters)
    given = {}
    if config.init.checkpoint:
        given |= checkpoint.restore_weights(config.init.checkpoint, wanted)
    for name in config.model.perception:
        if file := config.init.get(name):
            from kosmos_jax.interop.importing import encoder_parameters

            given |= encoder_parameters(name, file, config.model, wanted)
    left = sum(leaf.size for path, leaf in abstract.frozen.items() if path not in given)
    if left:
        flags = " or ".join(f"--config.init.{name}=FILE" for name in config.model.perception)
        log.warning(
            "%d frozen parameters keep random values: %s takes published ones, and --config.training.frozen='()' "
            "trains them",
            left,
            flags,
        )
    return given


def start_or_resume(config, workdir, manager, made: Step, fingerprint: str):
    """The newest checkpoint's state, or a fresh one where there is no checkpoint; what changed is said.

    Args:
      config: the complete config.
      workdir: of the run.
      manager: of its checkpoints.
      made: the compiled step's parts.
      fingerprint: of the data.
    """
    resumed = resume(workdir, manager, made.abstract, made.shardings, config.training.wait_seconds)
    if not resumed:
        make = jax.jit(partial(initial_state, config, made.optimizer), out_shardings=made.shardings)
        given = given_parameters(config, made.abstract, made.shardings)
        return replace_parameters(make(jax.random.key(config.seed)), given)
    state, run = resumed
    log.info("resuming from step %d of %s", int(state.step), manager.directory)
    if changed := differences(json.loads(run["config"]), config):
        log.warning("THE CONFIG CHANGED since the checkpoint was written: %s", "; ".join(changed))
    if run["data"]["fingerprint"] != fingerprint:
        log.warning(
            "THE DATA CHANGED since the checkpoint was written (%s, now %s): the run continues, but not as it would "
            "have without the stop",
            run["data"]["fingerprint"],
            fingerprint,
        )
    return state
