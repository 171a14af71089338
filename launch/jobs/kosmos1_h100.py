"""The paper's model on 64 H100 of a cloud: `--on gke` (a3-high) or `skypilot`. Names with "my" are yours to choose."""

from launch.job import Gke, JobDescription


def get_job():
    return JobDescription(
        name="kosmos1-h100",
        config="configs/kosmos1.py",
        topology="h100:8x8",
        overrides={"mesh.data": 8, "mesh.fsdp": 8},  # a copy of the state in each host; kosmos plan --mesh auto
        image="us-docker.pkg.dev/my-project/my-images/kosmos-gpu:0.1.0",
        mounts={"/runs": "gs://my-runs", "/data": "gs://my-data"},
        workdir="/runs/kosmos1-h100",
        max_restarts=50,  # of weeks: GKE counts all of them
        env={"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"},
        gke=Gke(queue="my-queue"),
    )
