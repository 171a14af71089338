"""What a run begins with: its folder, its data, and weights that are fresh, given, or of the newest checkpoint."""

import logging
from functools import partial
from pathlib import Path

import jax

from data_pipeline.mixture import Mixture
from data_pipeline.pipeline import make_tokenizer
from kosmos_jax import checkpoint
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import row_shards
from kosmos_jax.training.compile import Step
from kosmos_jax.training.state import initial_state, replace_parameters

log = logging.getLogger(__name__)


def make_workdir(workdir) -> Path:
    """The folder `workdir`.

    Raises:
      UserError: it is an address.
    """
    if "://" in str(workdir):
        raise UserError(f"--workdir {workdir}: give a folder, such as a mounted bucket; addresses are not understood")
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    return workdir


def open_data(config, cache, mesh):
    """Tokenizer, training mixture and held-out mixture.

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

    Raises:
      UserError: it cannot be read or is of another model.
    """
    wanted = checkpoint.placed(abstract.parameters, shardings.parameters)
    given = {}
    if config.init.checkpoint:
        given |= checkpoint.restore_weights(config.init.checkpoint, wanted)
    if config.init.vision:
        from kosmos_jax.interop.importing import vision_parameters

        given |= vision_parameters(config.init.vision, config.model, wanted)
    left = sum(leaf.size for path, leaf in abstract.frozen.items() if path not in given)
    if left:
        log.warning(
            "%d frozen parameters keep random values: --config.init.vision=FILE takes CLIP's, and "
            "--config.training.frozen='()' trains them",
            left,
        )
    return given


def start_or_resume(config, manager, made: Step, fingerprint: str):
    """The newest checkpoint's state, or a fresh one where there is no checkpoint."""
    resumed = checkpoint.resume(manager, made.abstract, made.shardings)
    if not resumed:
        make = jax.jit(partial(initial_state, config, made.optimizer), out_shardings=made.shardings)
        given = given_parameters(config, made.abstract, made.shardings)
        return replace_parameters(make(jax.random.key(config.seed)), given)
    state, run = resumed
    log.info("going on from step %d of %s", int(state.step), manager.directory)
    if run["data"]["fingerprint"] != fingerprint:
        log.warning(
            "THE DATA CHANGED since the checkpoint was written (%s, now %s): the run goes on, but not as it would have "
            "gone without the stop",
            run["data"]["fingerprint"],
            fingerprint,
        )
    return state
