"""Plans made in a process of their own: a compiler that crashes or takes too much memory takes only that one along."""

import multiprocessing
import os
import threading
import traceback
from multiprocessing.connection import wait

from kosmos_jax.config import from_json, to_json
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.topology import Topology, parse


def isolated_plan(config, topology: Topology, mesh_name: str | None = None, **changes):
    """`make_plan` of a `prepared` config.

    Args:
      config, topology, mesh_name, **changes: see `plan.prepared`.

    Raises:
      UserError: as `make_plan`; or the compiler crashed.
    """
    name = f"{topology.chip.name}:{topology.name}"
    return _isolated(_plan, topology, to_json(config), name, topology.slices, mesh_name, changes)


def isolated_inference_plan(config, topology: Topology, mesh: str | bool = False, slots=None, int8=()):
    """`inference.make_inference_plan` of a config.

    Args:
      config, topology: as loaded.
      mesh: a preset of kosmos_jax.parallel.mesh, True for that of the config, False for `inference.default_mesh`.
      slots, int8: see `make_inference_plan`.

    Raises:
      UserError: as there; or the compiler crashed.
    """
    name = f"{topology.chip.name}:{topology.name}"
    return _isolated(_inference_plan, topology, to_json(config), name, topology.slices, mesh, slots, int8)


def _isolated(make, topology: Topology, *question):
    """What `make` says to a question, in a process of its own."""
    context = multiprocessing.get_context("spawn")  # libtpu does not survive a fork
    answers, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, make, *question), daemon=True)
    process.start()
    sender.close()
    try:
        answer = answers.recv()
    except EOFError:
        raise UserError(
            f"the compiler for {topology} crashed, or the machine ran out of memory (dmesg tells). This is not "
            "about the config's size on the chip; other numbers of rows or microbatches, or another mesh, may pass"
        ) from None
    finally:
        process.kill()  # on Ctrl-C: the compiler would not hear it before it is done
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(sender, make, *question) -> None:
    """In the process of its own: sends the plan, or the error that was raised instead."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([parent]), os._exit(1)), daemon=True).start()
    try:
        sender.send(make(*question))
    except UserError as error:
        sender.send(error)
    except Exception:
        sender.send(RuntimeError(traceback.format_exc()))  # not every error can be sent, nor its traceback


def _plan(config_json: str, topology: str, slices: int, mesh_name: str | None, changes: dict):
    from kosmos_jax.planning.devices import examine_only

    examine_only()
    from kosmos_jax.planning.plan import make_plan, prepared

    parsed = parse(topology, slices)
    return make_plan(prepared(from_json(config_json), parsed, mesh_name, **changes), parsed)


def _inference_plan(config_json: str, topology: str, slices: int, mesh, slots, int8):
    from kosmos_jax.planning.devices import examine_only

    examine_only()
    from kosmos_jax.planning.inference import default_mesh, make_inference_plan
    from kosmos_jax.planning.plan import prepared

    config, parsed = from_json(config_json), parse(topology, slices)
    sizes = {} if mesh else {f"mesh__{axis}": size for axis, size in default_mesh(config, parsed).items()}
    config = prepared(config, parsed, mesh if isinstance(mesh, str) else None, **sizes)
    return make_inference_plan(config, parsed, slots, int8)
