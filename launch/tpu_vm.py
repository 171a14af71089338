"""Cloud TPU without Kubernetes: a script that asks gcloud for a queued resource, and what its machines do at each boot.

Sources: `gcloud compute tpus queued-resources create --help` (528), docs.cloud.google.com/tpu/docs/queued-resources and
.../runtimes, docs.cloud.google.com/storage/docs/cloud-storage-fuse/install.
"""

import shlex

from launch.gke import BUCKET_OPTIONS
from launch.job import GRACE_SECONDS, JobDescription

SUFFIX, CLIENT, INSTALL = ".sh", "gcloud", "https://cloud.google.com/sdk/docs/install; then gcloud auth login"
# The software of the machine itself; ours comes in the image. TPU v7 is not in the Cloud TPU API.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
FLAGS = " ".join(f"--{option}" for option in BUCKET_OPTIONS.split(","))

CONTROL = """\
#!/bin/bash
# create  ask for the TPUs; they train as soon as they are there
# watch   ask again when they were taken away, give them back when the run has ended
# logs    follow host 0
# state   where the request stands
# stop    give everything back; until then it costs, whether it trains or not
set -euo pipefail
where=({where})

boot=$(mktemp)
trap 'rm -f "$boot"' EXIT
cat > "$boot" <<'BOOT'
{boot}BOOT

tpu() {{ gcloud compute tpus "$@" "${{where[@]}}"; }}
state() {{ tpu queued-resources describe {name} --format='value(state.state)'; }}
on_host_0() {{ tpu tpu-vm ssh {host_0} --worker=0 --command="$1"; }}

create() {{
    tpu queued-resources create {name} \\
        {flags} \\
        --metadata-from-file=startup-script="$boot"
}}
stop() {{ tpu queued-resources delete {name} --force --quiet; }}
watch() {{
    while sleep 60; do
        case $(state || echo UNKNOWN) in
            SUSPENDED | FAILED) stop && until create; do sleep 60; done ;;
            ACTIVE)
                if on_host_0 'test -e /var/lib/kosmos-ended' 2> /dev/null; then
                    on_host_0 'sudo tail -n 100 /var/log/kosmos.log' || true
                    stop && break
                fi
                ;;
        esac
    done
}}
logs() {{ on_host_0 'sudo tail -n 100 -F /var/log/kosmos.log'; }}

case ${{1:-}} in
    create | watch | logs | state | stop) "$1" ;;
    *) echo "usage: bash $0 create|watch|logs|state|stop" >&2; exit 2 ;;
esac
"""

BOOT = """\
#!/bin/bash
# Every host runs this as root at each boot, so also after maintenance.
exec >> /var/log/kosmos.log 2>&1
[ -e /var/lib/kosmos-ended ] && exit
{login}
# Without its bucket a run would begin anew on the host's own disk: then it does not start.
mount_buckets() {{
    command -v gcsfuse || install_gcsfuse || return
{mounts}}}
{install_gcsfuse}
failures=0
until [ $failures -gt {max_restarts} ]; do
    echo "== start on $(hostname), $(date -Is)"
    # With the host's network and devices, JAX finds the other hosts as it does without a container.
    docker rm --force kosmos
    mount_buckets && docker run --name kosmos --init --privileged --net=host --ipc=host --stop-timeout={grace} \\
        {options} \\
        {command}
    status=$?
    echo "== status $status"
    case $status in
        0) break ;;  # all steps done
        2) break ;;  # see the message above: another start would end in the same way
        75) ;;       # stopped and saved
        *) failures=$((failures + 1)) ;;
    esac
    sleep 10
done
touch /var/lib/kosmos-ended
"""

INSTALL_GCSFUSE = """\
install_gcsfuse() {
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc &&
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt" \\
            "gcsfuse-$(lsb_release -cs) main" > /etc/apt/sources.list.d/gcsfuse.list &&
        apt-get update && apt-get install -y gcsfuse
}
"""


def render(job: JobDescription) -> str:
    """A script with the commands create, watch, logs, state and stop."""
    job.require(job.kind == "tpu", "topology", "Cloud TPU has TPUs only; for GPUs use --on gke, slurm or skypilot")
    chip = job.place.chip
    job.require(
        chip.name in RUNTIMES, "topology", f"Cloud TPU's API has {', '.join(RUNTIMES)}; for others use --on gke"
    )
    job.require(job.image, "image", "build launch/docker/Dockerfile.tpu, push it, and name it here")
    job.require(job.tpu_vm.project and job.tpu_vm.zone, "tpu_vm", 'write TpuVm(project="PROJECT", zone="ZONE")')
    job.require(not job.reservation, "reservation", 'queued resources take any: write capacity="reserved" alone')
    job.require_workdir_mounted()
    flags = [f"--accelerator-type={job.place.accelerator_type}", f"--runtime-version={RUNTIMES[chip.name]}"]
    several = job.slices > 1
    flags += [f"--node-count={job.slices}", f"--node-prefix={job.name}"] if several else [f"--node-id={job.name}"]
    flags += [f"--{job.capacity}"] if job.capacity != "on-demand" else []
    flags += [f"--service-account={job.tpu_vm.service_account}"] if job.tpu_vm.service_account else []
    return CONTROL.format(
        where=shlex.join([f"--project={job.tpu_vm.project}", f"--zone={job.tpu_vm.zone}"]),
        name=job.name,
        host_0=f"{job.name}-0" if several else job.name,
        flags=" \\\n        ".join(map(shlex.quote, flags)),
        boot=boot_script(job),
    )


def boot_script(job: JobDescription) -> str:
    lines, options = [], []
    for path, source in job.mounts.items():
        bucket = source.removeprefix("gs://").rstrip("/")
        job.require(source.startswith("gs://") and "/" not in bucket, "mounts", f'{source!r}: write "gs://BUCKET"')
        where = shlex.quote(path)
        lines.append(f"    mkdir -p {where}\n")
        lines.append(f"    mountpoint -q {where} || gcsfuse -o allow_other {FLAGS} {bucket} {where} || return\n")
        options.append(f"--volume={path}:{path}")
    options += [f"--env={key}={value}" for key, value in job.env.items()]
    registry = job.image.partition("/")[0]
    login = f"gcloud auth configure-docker {registry} --quiet\n" if registry.endswith("pkg.dev") else ""
    return BOOT.format(
        install_gcsfuse=INSTALL_GCSFUSE,
        mounts="".join(lines),
        login=login,
        max_restarts=job.max_restarts,
        grace=GRACE_SECONDS,
        options=shlex.join([*options, job.image]),
        command=shlex.join(job.command),
    )


def submit_command(job: JobDescription, path: str) -> list[str]:
    return ["bash", path, "create"]


def advice(job: JobDescription, path: str, output: str) -> dict[str, str]:
    """Commands for afterwards."""
    watch = (
        {"keep asking": f"bash {path} watch"} if job.capacity == "spot" else {"stop when done": f"bash {path} watch"}
    )
    return {"follow": f"bash {path} logs", "state": f"bash {path} state", **watch, "stop": f"bash {path} stop"}
