"""The demo on two CPU hosts: `--on slurm` for a small cluster, `--on local` for two processes on this machine."""

from launch.job import JobDescription, Serve


def get_job():
    return JobDescription(
        name="demo-cpu",
        config="configs/demo.py",
        overrides={"training.steps": 300},
        topology="cpu:2x1",
        venv=".venv",  # as `make demo` made it, on a file system that both hosts see
        workdir="out/demo-cpu",
        max_restarts=3,
        serve=Serve(flags=("--config.mesh.tensor=2",)),
    )
