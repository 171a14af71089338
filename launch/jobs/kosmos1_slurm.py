"""The paper's model on 64 H100 of a Slurm cluster. Names with "my" are yours to choose."""

from launch.job import JobDescription, Slurm


def get_job():
    return JobDescription(
        name="kosmos1-slurm",
        config="configs/kosmos1.py",
        topology="h100:8x8",
        overrides={"mesh.data": 8, "mesh.fsdp": 8},  # a copy of the state in each host; kosmos plan --mesh auto
        venv="/shared/kosmos/.venv",
        workdir="/shared/runs/kosmos1",
        env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"},
        slurm=Slurm(partition="my-partition", account="my-account", time="24:00:00"),
    )
