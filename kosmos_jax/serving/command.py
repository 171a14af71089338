"""`kosmos serve`."""

import logging
import os
import socket
import threading
from functools import partial
from pathlib import Path

from kosmos_jax.errors import UserError, from_os
from kosmos_jax.serving.chat import TEMPLATES

log = logging.getLogger(__name__)
KEY = "KOSMOS_API_KEY"
DRAIN_SECONDS, SEND_SECONDS = 30, 3  # for what is written, and then for what is sent
# Pieces of prompts that a turn reads while others write. Fewer leave slots empty: with 2, eight slots of short texts
# are half full.
PIECES = 8
DEFAULT_SLOTS = "256x8,768x4,768x2x4"


def add_arguments(parser):
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a workdir, its checkpoints/, or one step's folder")
    add("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine alone")
    add("--port", type=int, default=8000, metavar="N", help="default: 8000")
    add("--name", default="", help="of the model; default: the folder's")
    add(
        "--slots",
        default=DEFAULT_SLOTS,
        metavar="LxN[xW],...",
        help=f"N slots of L tokens, with W branches for beams and n; default: {DEFAULT_SLOTS}",
    )
    add("--queue", type=int, default=256, metavar="N", help="requests at the same time, at most; default: 256")
    add("--template", default="base", choices=sorted(TEMPLATES), help="of dialogues; default: base")
    add("--api-key", default="", metavar="KEY", help=f"that requests must have; default: the variable {KEY}, or none")
    add(
        "--allow-host", action="append", default=[], metavar="NAME", help="fetch images from this host; may be repeated"
    )
    add("--max-items", type=int, default=32, metavar="N", help="items of media in a request; default: 32")


def serve(args) -> int:
    """Serves a checkpoint until SIGTERM or SIGINT. Of several processes, the first one answers.

    Raises:
      UserError: no checkpoint, or an impossible option; or a package is missing.
      OSError: the address cannot be listened on.
    """
    import jax

    try:
        import uvicorn

        from kosmos_jax.serving.app import Server
        from kosmos_jax.serving.lockstep import follow
        from kosmos_jax.serving.media import Limits
        from kosmos_jax.serving.metrics import Metrics
        from kosmos_jax.serving.worker import Worker
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install 'kosmos_jax[serve]'") from error
    from kosmos_jax.inference import load
    from kosmos_jax.inference.command import mesh_of, pools_of
    from kosmos_jax.parallel.distributed import WAIT_SECONDS, exchange

    pools, mesh, first = pools_of(args.slots), mesh_of(args.overrides), jax.process_index() == 0
    if jax.process_count() > 1 and mesh is None:
        raise UserError("several processes share a mesh, or each would do all the work; add --config.mesh.tensor=N")
    flags = f"--slots {args.slots} --int8 {args.int8} {' '.join(sorted(args.overrides))}"
    if len(said := set(exchange("flags", flags, WAIT_SECONDS))) > 1:
        raise UserError(f"the processes of this server have other flags: {'; '.join(sorted(said))}")
    listener = _listener(args.host, args.port) if first else None  # before the weights: what is taken is told at once
    generator = load(args.checkpoint, mesh, pools=pools, pieces=PIECES, int8=args.int8)
    if not first:
        return follow(generator.engine)
    metrics = Metrics()
    worker = Worker(generator, args.queue, metrics.first_token)
    metrics.watch(worker)
    limits = Limits(items=args.max_items, hosts=frozenset(map(str.lower, args.allow_host)))
    name = args.name or Path(args.checkpoint).resolve().name
    server = Server(worker, metrics, name, args.template, limits, args.api_key or os.environ.get(KEY, ""))
    settings = dict(log_level="warning", timeout_graceful_shutdown=SEND_SECONDS)
    http = uvicorn.Server(uvicorn.Config(server.app, **settings))
    worker.start()
    log.info("%s at http://%s:%d", name, args.host, args.port)
    http.handle_exit = partial(_drain, worker, http)
    http.run(sockets=[listener])
    worker.stop(0)
    return 0 if not worker.failure else 1


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise from_os(f"--host {host} --port {port}", error) from error


def _drain(worker, http, *_):
    """At the first signal new requests get 503, and the server ends after those that are there; at another, at once."""
    if worker.closing:
        http.should_exit = http.force_exit = True
        return
    worker.close()

    def wait():
        worker.wait(DRAIN_SECONDS)
        http.should_exit = True

    threading.Thread(target=wait, name="drain", daemon=True).start()
