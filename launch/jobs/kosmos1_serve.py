"""The paper's model, served by 4 v5e chips of one host: `--serve --on gke`. Names with "my" are yours to choose."""

from launch.job import JobDescription, Serve


def get_job():
    return JobDescription(
        name="kosmos1",
        config="configs/kosmos1.py",
        topology="v5e:2x2",
        image="us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0",
        mounts={"/runs": "gs://my-runs"},
        workdir="/runs/kosmos1-v5e",
        serve=Serve(flags=("--slots=256x32,768x16,768x4x4", "--config.mesh.tensor=4")),
    )
