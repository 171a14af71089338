"""The paper's model on 64 v5p chips: `--on gke`, `tpu-vm` or `skypilot`. Names with "my" are yours to choose."""

from launch.job import Gke, JobDescription, TpuVm


def get_job():
    return JobDescription(
        name="kosmos1-v5p",
        config="configs/kosmos1.py",
        topology="v5p:4x4x4",
        image="us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0",
        mounts={"/runs": "gs://my-runs", "/data": "gs://my-data"},
        workdir="/runs/kosmos1-v5p",
        max_restarts=50,  # of weeks: GKE counts all of them
        gke=Gke(queue="my-queue"),
        tpu_vm=TpuVm(project="my-project", zone="us-east5-a"),
    )
