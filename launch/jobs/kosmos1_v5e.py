"""The paper's model on two spot slices of 256 v5e: `--on gke` or `tpu-vm`. Names with "my" are yours to choose."""

from launch.job import Gke, JobDescription, TpuVm


def get_job():
    return JobDescription(
        name="kosmos1-v5e",
        config="configs/kosmos1.py",
        topology="v5e:16x16",
        slices=2,
        overrides={"data.batch_rows": 512, "mesh.data": 8, "mesh.fsdp": 64},  # a row a chip; kosmos plan --mesh auto
        image="us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0",
        mounts={"/runs": "gs://my-runs", "/data": "gs://my-data"},
        workdir="/runs/kosmos1-v5e",
        max_restarts=50,  # of weeks: GKE counts all of them
        capacity="spot",
        gke=Gke(queue="my-queue", service_account="my-account"),
        tpu_vm=TpuVm(project="my-project", zone="us-east5-a"),
    )
