from dataclasses import replace

import pytest

from data_pipeline.layout import batch_layout
from kosmos_jax.config import load_config
from kosmos_jax.errors import UserError
from kosmos_jax.parallel.mesh import axis_sizes
from launch.job import JobDescription, Serve, Slurm, load_job
from tests.launch.cases import ROOT, job, target_module

GOOD = dict(name="a", config="c.py", topology="cpu:2x3", workdir="/w")


@pytest.mark.parametrize("path", sorted((ROOT / "launch/jobs").glob("*.py")), ids=lambda path: path.name)
def test_the_rows_and_the_state_of_every_shipped_job_divide_over_its_devices(path):
    described = load_job(path)
    overrides = [word for word in described.command if word.startswith("--config.")]
    config = load_config(ROOT / described.config, overrides)
    devices = described.place.devices if described.place else described.processes
    data, fsdp, tensor, context = axis_sizes(config.mesh, devices)
    batch_layout(config, data * fsdp)  # or it raises
    widths = config.model.text.width, config.model.perception.image.encoder.width
    assert not any(width % fsdp for width in widths)


@pytest.mark.parametrize(
    "topology, slices, kind, hosts, per_host, processes",
    [
        ("cpu:2x3", 1, "cpu", 2, 3, 6),
        ("h100:8x8", 1, "gpu", 8, 8, 64),
        ("h200:1x4", 1, "gpu", 1, 4, 4),
        ("v5p:4x4x4", 1, "tpu", 16, 4, 16),
        ("v5e:16x16", 2, "tpu", 64, 4, 128),
        ("v5e:1x1", 1, "tpu", 1, 1, 1),
    ],
)
def test_one_process_for_each_tpu_host_and_each_gpu(topology, slices, kind, hosts, per_host, processes):
    described = JobDescription(**GOOD | dict(topology=topology, slices=slices))
    assert (described.kind, described.hosts, described.per_host, described.processes) == (
        kind,
        hosts,
        per_host,
        processes,
    )


def test_overrides_become_flags_of_the_command():
    described = JobDescription(**GOOD, overrides={"training.steps": 5, "mesh.fsdp": -1})
    flags = ["--config.training.steps=5", "--config.mesh.fsdp=-1"]
    assert described.command == ["kosmos", "train", "--config", "c.py", "--workdir", "/w", *flags]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(name="Kosmos_1"), "name is 'Kosmos_1'; write at most 40"),
        (dict(name="x" * 41), "write at most 40"),
        (dict(name="a-"), "write at most 40"),
        (dict(name="a.b"), "write at most 40"),
        (dict(name="a\n"), "write at most 40"),
        (dict(name=7), "name has to be of the type str"),
        (dict(config=""), "config is ''; name a file"),
        (dict(workdir="gs://b/1"), 'mounts={"/runs": "gs://BUCKET"}, workdir="/runs/1"'),
        (dict(workdir=""), "name a folder that all machines share"),
        (dict(capacity="preemptible"), "write one of on-demand, spot, reserved"),
        (dict(reservation="r"), 'add capacity="reserved"'),
        (dict(max_restarts=-1), "0 is the least"),
        (dict(max_restarts=2.5), "max_restarts has to be of the type int"),
        (dict(topology="v5e:4x4", slices=1.5), "slices is 1.5; slices has to be of the type int"),
        (dict(topology="v5e:4x4", slices=True), "slices has to be of the type int"),
        (dict(topology="v5e:4x4", slices=-2), "write how many there are, 1 or more"),
        (dict(slurm=Slurm(setup="module load cuda")), "setup has to be of the type tuple"),
        (dict(slurm=None), "slurm has to be of the type Slurm"),
        (dict(serve=None), "serve has to be of the type Serve"),
        (dict(serve=Serve(port="80")), "port has to be of the type int"),
        (dict(serve=Serve(flags="--slots=256x8")), "flags has to be of the type tuple"),
        (dict(serve=Serve(flags=("--queue", 9))), "its flags have to be text"),
        (dict(serve=Serve(flags=("--port", "80"))), "serve has the flag --port; write Serve(port=N)"),
        (dict(serve=Serve(flags=("--checkpoint=/a",))), "serve has the flag --checkpoint; the checkpoint is"),
        (dict(serve=Serve(flags=("--api-key=secret",))), "serve has the flag --api-key; a key has no place in a file"),
        (dict(env={"KOSMOS_API_KEY": "secret"}), "env has KOSMOS_API_KEY; a key has no place in a file"),
        (dict(verb="eval"), "verb is 'eval'; write one of train, serve"),
        (dict(image="a b"), "image is 'a b'; write REGISTRY/NAME:TAG"),
        (dict(image='x"$(id)'), "write REGISTRY/NAME:TAG"),
        (dict(image="--privileged"), "write REGISTRY/NAME:TAG"),
        (dict(image="a", venv="/b"), "name this or an image, not both"),
        (dict(env={"A": 1}), "'A': give text"),
        (dict(env={"A B": "1"}), "'A B': give text"),
        (dict(env={"A=B": "1"}), "'A=B': give text"),
        (dict(env={"": "1"}), "'': give text"),
        (dict(env={"Ä": "1"}), "'Ä': give text"),
        (dict(env={"A": "x\0y"}), "'A': give text"),
        (dict(mounts={"runs": "gs://b"}), "'runs' has to be an absolute path"),
        (dict(mounts={"/": "gs://b"}), "'/' has to be an absolute path"),
        (dict(mounts={"/a/../etc": "gs://b"}), "'/a/../etc' has to be an absolute path"),
        (dict(mounts={"/a:ro": "gs://b"}), "'/a:ro' has to be an absolute path"),
        (dict(mounts={"/a": "gs://b; touch /x"}), "give a bucket, a claim or a path"),
        (dict(mounts={"/a": "/b,/c"}), "give a bucket, a claim or a path"),
        (dict(mounts={"/a": None}), "give a bucket, a claim or a path"),
        (dict(topology="cpu:0x1"), "write cpu:HOSTSxPROCESSES"),
        (dict(topology="h100:0x8"), "write h100:8x8"),
        (dict(topology="v5e:2x6"), "near it are v5e:"),
        (dict(topology="cpu:2"), "write cpu:HOSTSxPROCESSES"),
        (dict(topology="cpu:2x1", slices=2), "write cpu:HOSTSxPROCESSES, and no slices"),
        (dict(topology="v5q:4x4x4"), "no chip is called 'v5q'"),
    ],
)
def test_a_description_that_does_not_hold_together_says_what_to_write(changes, message):
    with pytest.raises(UserError) as error:
        JobDescription(**GOOD | changes)
    assert message in str(error.value) and "secret" not in str(error.value)


def test_a_job_serves_its_workdir_with_the_flags_of_serve():
    described = JobDescription(**GOOD, overrides={"training.steps": 5}, serve=Serve(81, ("--config.mesh.tensor=6",)))
    words = "kosmos serve --checkpoint /w --host 0.0.0.0 --port 81 --config.mesh.tensor=6"
    assert (described.serving().name, described.serving().command) == ("a-serve", words.split())


@pytest.mark.parametrize(
    "name, target, changes, message",
    [
        ("kosmos1_v5p", "slurm", {}, "use --on gke or --on tpu-vm"),
        ("demo_cpu", "slurm", dict(venv=""), "name the shared folder"),
        ("demo_cpu", "slurm", dict(capacity="spot"), "spot is a partition or a QOS"),
        ("demo_cpu", "slurm", dict(capacity="reserved"), "scontrol show res"),
        ("kosmos1_h100", "slurm", {}, "on Slurm: paths of the hosts"),
        ("demo_cpu", "slurm", dict(mounts={"/a": "/b"}), "with a venv write the paths of the hosts"),
        ("demo_cpu", "slurm", dict(venv="", image="i", mounts={"/a": "/b"}), "put it under a mount"),
        ("demo_cpu", "slurm", dict(slurm=Slurm(time="2 days")), "'2 days' has spaces"),
        ("demo_cpu", "slurm", dict(slurm=Slurm(account="a\n#SBATCH --uid=0")), "has spaces"),
        ("demo_cpu", "gke", {}, "on GKE give TPUs or GPUs"),
        ("kosmos1_v5p", "gke", dict(image=""), "Dockerfile.tpu"),
        ("kosmos1_v5p", "gke", dict(workdir="/elsewhere"), "put it under a mount"),
        ("kosmos1_v5p", "gke", dict(workdir="/runs/../tmp"), "put it under a mount"),
        ("kosmos1_v5p", "gke", dict(workdir="runs/1"), "put it under a mount"),
        ("kosmos1_v5p", "gke", dict(capacity="reserved"), "name the reservation"),
        ("kosmos1_v5p", "gke", dict(mounts={"/runs": "s3://b"}), 'write "gs://BUCKET" or "pvc:CLAIM"'),
        ("kosmos1_v5p", "gke", dict(mounts={"/runs": "gs://b/folder"}), "mount the bucket itself"),
        ("kosmos1_h100", "tpu-vm", {}, "Cloud TPU has TPUs only"),
        ("kosmos1_v5p", "tpu-vm", dict(topology="tpu7x:4x4x4"), "for others use --on gke"),
        ("kosmos1_v5p", "tpu-vm", dict(mounts={"/runs": "pvc:c"}), 'write "gs://BUCKET"'),
        ("kosmos1_v5p", "tpu-vm", dict(mounts={"/runs": "gs://"}), 'write "gs://BUCKET"'),
        ("kosmos1_v5e", "skypilot", {}, "SkyPilot starts one TPU slice"),
        ("kosmos1_v5p", "skypilot", dict(topology="v5p:4x4x16"), "gets v5p:4x8x8; for this shape use --on gke"),
        ("kosmos1_v5p", "skypilot", dict(image="", venv="/v"), "that is for Slurm"),
        ("kosmos1_v5p", "skypilot", dict(capacity="reserved"), "gcp.specific_reservations"),
        ("kosmos1_h100", "local", {}, 'write one, such as "h100:1x8"'),
        ("kosmos1_v5p", "tpu-vm", dict(verb="serve"), "a server runs with --on slurm, gke or local"),
        ("kosmos1_v5p", "skypilot", dict(verb="serve"), "a server runs with --on slurm, gke or local"),
        ("kosmos1_v5e", "gke", dict(verb="serve"), "a server has one slice"),
    ],
)
def test_what_a_scheduler_cannot_do_is_refused_with_what_can(name, target, changes, message):
    with pytest.raises(UserError) as error:
        target_module(target).render(replace(job(name), **changes))
    assert message in str(error.value)


def test_tpu_vms_are_asked_for_by_their_shape():
    script = target_module("tpu-vm").render(job("kosmos1_v5p", "v5p:4x4x16"))
    assert "--type=v5p" in script and "--topology=4x4x16" in script and "accelerator-type" not in script


def test_an_error_in_a_job_file_names_the_line(tmp_path):
    file = tmp_path / "job.py"
    file.write_text("def get_job():\n    return 1 / 0\n")
    with pytest.raises(UserError, match=r"job.py, line 2: ZeroDivisionError"):
        load_job(file)
    file.write_text("def get_job():\n    return 1\n")
    with pytest.raises(UserError, match="returns a int; it has to be a launch.job.JobDescription"):
        load_job(file)
    file.write_text("")
    with pytest.raises(UserError, match="KeyError: 'get_job'"):
        load_job(file)
    with pytest.raises(UserError, match="nothing.py does not exist"):
        load_job("nothing.py")
