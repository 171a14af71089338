"""What a job is, whichever scheduler runs it: the description, and the Python file that holds it."""

import re
import runpy
import shlex
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import get_origin

from kosmos_jax.errors import UserError
from kosmos_jax.parallel.topology import Topology, parse
from kosmos_jax.serving.command import DRAIN_SECONDS, KEY, SEND_SECONDS

CAPACITIES = ("on-demand", "spot", "reserved")
# Of process 0, where nothing else names one.
COORDINATOR_PORT = 8476
# Between SIGTERM and SIGKILL, by verb: for a checkpoint; for the requests that are there, and the end of the processes.
# A spot machine is taken away after 30 seconds whatever is asked for.
GRACE_SECONDS = {"train": 300, "serve": DRAIN_SECONDS + SEND_SECONDS + 12}
# What `kosmos serve` has flags for and a job says elsewhere.
SAID_ELSEWHERE = {
    "--checkpoint": "the checkpoint is the workdir's",
    "--port": "write Serve(port=N)",
    "--api-key": f"a key has no place in a file, set the variable {KEY} (docs/serving.md, Deployment)",
}
# Characters that mean the same to shells, schedulers and container runtimes. Others may end a word or a list there.
PATH, SOURCE, IMAGE = r"(/[\w.@+=-]+)+/?", r"[\w./][\w.:/@+=-]*", r"[\w./][\w.:/@#+-]*"


@dataclass(frozen=True)
class Slurm:
    """What only sbatch is told; what is empty is left to the cluster."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""  # of one start, such as "24:00:00": when it is nearly up, the run saves and is queued again
    setup: tuple[str, ...] = ()  # lines of shell before the run, such as "module load cuda"


@dataclass(frozen=True)
class Gke:
    """What only Kubernetes is told."""

    queue: str = ""  # Kueue's LocalQueue; empty: no Kueue, the pods start as soon as there are nodes
    namespace: str = "default"
    service_account: str = ""  # of Kubernetes, with access to the buckets


@dataclass(frozen=True)
class TpuVm:
    """What only gcloud is told."""

    project: str = ""
    zone: str = ""
    service_account: str = ""  # an e-mail address; empty: Compute Engine's default one


@dataclass(frozen=True)
class Serve:
    """What only `kosmos serve` is told."""

    port: int = 8000
    flags: tuple[str, ...] = ()  # more of them, such as "--slots=768x16", "--int8=cache", "--config.mesh.tensor=4"


@dataclass(frozen=True)
class JobDescription:
    """A run of `kosmos train` on a number of machines, or `kosmos serve` for what it made; launch/jobs has examples.

    Every start runs the same command, and takes the newest checkpoint of the workdir.
    """

    name: str
    config: str  # as for `kosmos train`; a relative path counts from the image's folder, or from where you submit
    topology: str  # "v5p:4x4x4"; "h100:8x8", hosts x GPUs; "cpu:2x1", hosts x processes
    workdir: str  # a path that all machines share: under one of `mounts`, or a shared file system
    slices: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)  # {"training.steps": 500}
    image: str = ""
    venv: str = ""  # instead of an image, on Slurm: a folder that all hosts see
    mounts: Mapping[str, str] = field(default_factory=dict)  # path -> "gs://BUCKET", "pvc:CLAIM" (GKE), "/path" (Slurm)
    env: Mapping[str, str] = field(default_factory=dict)
    max_restarts: int = 10  # after failures without a new checkpoint; on GKE and SkyPilot, of the complete run
    capacity: str = "on-demand"
    reservation: str = ""  # its name, with capacity="reserved"
    slurm: Slurm = Slurm()
    gke: Gke = Gke()
    tpu_vm: TpuVm = TpuVm()
    serve: Serve = Serve()
    verb: str = "train"  # of kosmos; see `serving`

    def __post_init__(self):
        parts = {"slurm": self.slurm, "gke": self.gke, "tpu_vm": self.tpu_vm, "serve": self.serve}
        for key, part in {"": self, **parts}.items():
            for each in fields(part):
                kind, value = get_origin(each.type) or each.type, getattr(part, each.name)
                fine = isinstance(value, kind) and not isinstance(value, bool)
                self.require(fine, key or each.name, f"{each.name} has to be of the type {kind.__name__}")
        # Pods are called NAME-hosts-SLICE-HOST-xxxxx, and a name of Kubernetes has at most 63 characters.
        good_name = re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name)
        self.require(good_name, "name", "write at most 40 of a-z, 0-9 and -, beginning with a letter: kosmos1-v5p")
        self.require(self.config, "config", "name a file, as for `kosmos train`")
        mounted = 'mounts={"/runs": "gs://BUCKET"}, workdir="/runs/1"'
        self.require(not self.workdir.startswith("gs://"), "workdir", mounted)
        self.require(self.workdir, "workdir", "name a folder that all machines share")
        self.require(self.capacity in CAPACITIES, "capacity", f"write one of {', '.join(CAPACITIES)}")
        self.require(not self.reservation or self.capacity == "reserved", "reservation", 'add capacity="reserved"')
        self.require(self.verb in GRACE_SECONDS, "verb", f"write one of {', '.join(GRACE_SECONDS)}")
        self.require(self.max_restarts >= 0, "max_restarts", "0 is the least")
        self.require(not self.image or _only(IMAGE, self.image), "image", "write REGISTRY/NAME:TAG")
        self.require(not (self.image and self.venv), "venv", "name this or an image, not both")
        for key, value in self.env.items():
            fine = _only(r"[A-Za-z_]\w*", key) and isinstance(value, str) and "\0" not in value
            self.require(fine, "env", f"{key!r}: give text, and a name of letters, digits and _")
        # These messages show no value, which may be the key.
        if KEY in self.env:
            raise UserError(f"job {self.name}: env has {KEY}; {SAID_ELSEWHERE['--api-key']}")
        self.require(all(isinstance(word, str) for word in self.serve.flags), "serve", "its flags have to be text")
        for flag in (word.partition("=")[0] for word in self.serve.flags):
            if flag in SAID_ELSEWHERE:
                raise UserError(f"job {self.name}: serve has the flag {flag}; {SAID_ELSEWHERE[flag]}")
        for path, source in self.mounts.items():
            fine = _only(PATH, path) and ".." not in path
            self.require(fine, "mounts", f"{path!r} has to be an absolute path of letters, digits, . _ -")
            fine = _only(SOURCE, source)
            self.require(fine, "mounts", f"{source!r}: give a bucket, a claim or a path, without spaces")
        _ = self.hosts

    @cached_property
    def place(self) -> Topology | None:
        """The chips of a slice; None on CPU."""
        return None if self.topology.startswith("cpu:") else parse(self.topology, self.slices)

    @property
    def kind(self) -> str:
        """ "tpu", "gpu" or "cpu"."""
        return self.place.chip.kind if self.place else "cpu"

    @cached_property
    def hosts(self) -> int:
        """Machines of a slice."""
        return self.place.hosts if self.place else self._cpus[0]

    @property
    def per_host(self) -> int:
        """Chips of a host; on CPU, processes."""
        return self.place.chips // self.hosts if self.place else self._cpus[1]

    @property
    def _cpus(self) -> tuple[int, int]:
        match = re.fullmatch(r"cpu:([1-9]\d*)x([1-9]\d*)", self.topology)
        self.require(match and self.slices == 1, "topology", "for CPUs write cpu:HOSTSxPROCESSES, and no slices")
        return int(match[1]), int(match[2])

    @property
    def processes(self) -> int:
        """All processes of the job: one a TPU host, one a GPU, as many as asked for on CPU."""
        return self.slices * self.hosts * (1 if self.kind == "tpu" else self.per_host)

    @property
    def command(self) -> list[str]:
        """What every process runs."""
        kosmos = f"{self.venv}/bin/kosmos" if self.venv else "kosmos"
        if self.verb == "serve":
            address = ["--host", "0.0.0.0", "--port", str(self.serve.port)]
            return [kosmos, "serve", "--checkpoint", self.workdir, *address, *self.serve.flags]
        overrides = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return [kosmos, "train", "--config", self.config, "--workdir", self.workdir, *overrides]

    @property
    def gpu_processes(self) -> list[str]:
        """What a host with several GPUs runs: `command` once for each (launch/local.py). It comes after `--`."""
        counts = f"--here={self.per_host}", f"--total={self.processes}"
        return ["python", "-m", "launch.local", *counts, "--one-gpu-each"]

    @property
    def exports(self) -> list[str]:
        """The environment as lines of shell. A server starts with a key alone: other machines can reach it."""
        lines = [f"export {key}={shlex.quote(value)}" for key, value in self.env.items()]
        return lines + [f': "${{{KEY}:?export it before: the key that requests must have}}"'] * (self.verb == "serve")

    @property
    def grace_seconds(self) -> int:
        """Seconds between SIGTERM and SIGKILL."""
        return GRACE_SECONDS[self.verb]

    def serving(self) -> "JobDescription":
        """The same machines, which serve what the job trained."""
        return replace(self, verb="serve", name=f"{self.name}-serve")

    def require(self, fine, key: str, instead: str):
        """Raises a UserError about one field unless it is fine; `instead` says what to write.

        Args:
          fine: whether the value can be used.
          key: of the job, for the message.
          instead: what would be right.
        """
        if not fine:
            raise UserError(f"job {self.name}: {key} is {getattr(self, key)!r}; {instead}")

    def require_training(self):
        """For schedulers that have no place for a server."""
        self.require(self.verb == "train", "verb", "a server runs with --on slurm, gke or local")

    def require_workdir_mounted(self):
        """For machines that share nothing but buckets."""
        inside = any(PurePosixPath(self.workdir).is_relative_to(path) for path in self.mounts)
        fine, example = inside and ".." not in self.workdir, 'mounts={"/runs": "gs://BUCKET"}, workdir="/runs/1"'
        self.require(fine, "workdir", f"put it under a mount, such as {example}")


def _only(characters: str, text) -> bool:
    return isinstance(text, str) and re.fullmatch(characters, text, re.ASCII) is not None


def load_job(path: str | Path) -> JobDescription:
    """The job that `get_job()` of a Python file returns.

    Raises:
      UserError: no such file or function, an error inside, or a description that does not hold together.
    """
    if not Path(path).is_file():
        raise UserError(f"--job {path} does not exist; launch/jobs has examples")
    try:
        job = runpy.run_path(str(path))["get_job"]()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error
    if not isinstance(job, JobDescription):
        raise UserError(f"{path}: get_job() returns a {type(job).__name__}; it has to be a launch.job.JobDescription")
    return job
