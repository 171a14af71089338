"""Cloud TPU without Kubernetes: a script that asks gcloud for a queued resource, and what its machines do at each boot.

Sources: `gcloud alpha compute tpus queued-resources create --help` (528; without alpha, its --type knows v4 alone), the
pages tpu/docs/queued-resources, tpu/docs/runtimes, storage/docs/cloud-storage-fuse/install and
artifact-registry/docs/docker/authentication (access token) of docs.cloud.google.com.
"""

import shlex

from launch.gke import BUCKET_OPTIONS
from launch.job import JobDescription
from launch.restarts import count_failure

SUFFIX, CLIENT = ".sh", "gcloud"
INSTALL = "https://cloud.google.com/sdk/docs/install; then gcloud components install alpha and gcloud auth login"
# The software of the machine itself; ours comes in the image. TPU v7 is not in the Cloud TPU API.
RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
# How often in a row the container may not start: with pauses of 5 minutes, about a day.
SET_UPS = 290
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
cat > "$boot" <<'{end}'
{boot}{end}

tpu() {{ gcloud compute tpus "$@" "${{where[@]}}"; }}
state() {{ tpu queued-resources describe {name} --format='value(state.state)'; }}
on_host_0() {{ tpu tpu-vm ssh {host_0} --worker=0 --command="$1"; }}

create() {{
    gcloud alpha compute tpus queued-resources create {name} "${{where[@]}}" \\
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
export HOME=/root
[ -e /var/lib/kosmos-ended ] && exit
failures=/var/lib/kosmos-failures
{count_failure}
{functions}
mount_bucket() {{
    mountpoint -q "$2" && return
    umount --lazy "$2" 2> /dev/null  # a mount whose process died is in the way of another
    mkdir -p "$2" && gcsfuse -o allow_other {flags} "$1" "$2"
}}
# Without its bucket a run would begin anew on the host's own disk: then it does not start.
set_up() {{
    command -v gcsfuse || install_gcsfuse || return
{mounts}    docker image inspect {image} > /dev/null && return
    {login}docker pull --quiet {image}
}}
start() {{
    set_up || return 125  # as Docker says that a container did not even start
    docker rm --force kosmos
    # With the host's network and devices, JAX finds the other hosts as it does without a container.
    docker run --name kosmos --init --privileged --net=host --ipc=host --stop-timeout={grace} \\
        {options} \\
        {command}
}}

pause=10 set_ups=0
while :; do
    echo "== start on $(hostname), $(date -Is)"
    start
    status=$?
    [ $status -eq 125 ] || set_ups=0
    echo "== status $status"
    case $status in
        0) break ;;  # all steps done
        2) break ;;  # see the message above: another start would end in the same way
        75) pause=10 ;;  # stopped and saved
        125)  # no failure of the run, and most pass: the registry, apt's lock
            pause=$((pause < 160 ? 2 * pause : 300)) set_ups=$((set_ups + 1))
            if [ "$set_ups" -ge {set_ups} ]; then
                echo "== this host gives up: see above why the container did not start $set_ups times in a row"
                break
            fi
            ;;
        *)
            pause=10 count=$(count_failure $status)
            echo "== failure $count of {allowed} without a new checkpoint before this host gives up"
            [ "$count" -ge {allowed} ] && break
            ;;
    esac
    echo "== next start in $pause s"
    sleep $pause
done
touch /var/lib/kosmos-ended
"""

INSTALL_GCSFUSE = """\
# Right after boot the system updates itself, and holds apt's locks meanwhile. `update` does not wait for its own.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 "$@"; }
install_gcsfuse() {
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc &&
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt" \\
            "gcsfuse-$(lsb_release -cs) main" > /etc/apt/sources.list.d/gcsfuse.list &&
        apt update && apt install -y gcsfuse
}
"""
LOG_IN = """\
# With the token of the machine's service account, which lasts an hour: long enough for a pull.
log_in() {
    local url=http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token
    curl -fsS -H 'Metadata-Flavor: Google' $url | sed 's/.*"access_token" *: *"\\([^"]*\\)".*/\\1/' |
        docker login --username oauth2accesstoken --password-stdin "https://$1"
}
"""


def render(job: JobDescription) -> str:
    """A script with the commands create, watch, logs, state and stop."""
    job.require_training()
    job.require(job.kind == "tpu", "topology", "Cloud TPU has TPUs only; for GPUs use --on gke, slurm or skypilot")
    chip = job.place.chip
    known = f"Cloud TPU's API has {', '.join(RUNTIMES)}; for others use --on gke"
    job.require(chip.name in RUNTIMES, "topology", known)
    job.require(job.image, "image", "build launch/docker/Dockerfile.tpu, push it, and name it here")
    job.require(job.tpu_vm.project and job.tpu_vm.zone, "tpu_vm", 'write TpuVm(project="PROJECT", zone="ZONE")')
    job.require(not job.reservation, "reservation", 'queued resources take any: write capacity="reserved" alone')
    job.require_workdir_mounted()
    # Not by the accelerator type: v5p-512 alone is a slice of 4x8x8, and never one of 4x4x16.
    flags = [f"--type={chip.gcloud_type}", f"--topology={job.place.name}", f"--runtime-version={RUNTIMES[chip.name]}"]
    several = job.slices > 1
    flags += [f"--node-count={job.slices}", f"--node-prefix={job.name}"] if several else [f"--node-id={job.name}"]
    flags += [f"--{job.capacity}"] if job.capacity != "on-demand" else []
    flags += [f"--service-account={job.tpu_vm.service_account}"] if job.tpu_vm.service_account else []
    boot, end = boot_script(job), "BOOT"
    while end in boot:  # a line of the script that is the same would end it
        end += "_"
    return CONTROL.format(
        where=shlex.join([f"--project={job.tpu_vm.project}", f"--zone={job.tpu_vm.zone}"]),
        name=job.name,
        host_0=f"{job.name}-0" if several else job.name,
        flags=" \\\n        ".join(map(shlex.quote, flags)),
        boot=boot,
        end=end,
    )


def boot_script(job: JobDescription) -> str:
    """What each machine runs at each boot."""
    mounts, options = [], []
    for path, source in job.mounts.items():
        bucket = source.removeprefix("gs://").rstrip("/")
        fine = source.startswith("gs://") and bucket and "/" not in bucket
        job.require(fine, "mounts", f'{source!r}: write "gs://BUCKET"')
        mounts.append(f"    mount_bucket {shlex.join([bucket, path])} || return\n")
        options.append(f"--volume={path}:{path}")
    options += [f"--env={key}={value}" for key, value in job.env.items()]
    registry = job.image.partition("/")[0]
    private = registry.endswith(("pkg.dev", "gcr.io"))
    return BOOT.format(
        count_failure=count_failure(job.workdir),
        functions=INSTALL_GCSFUSE + (LOG_IN if private else ""),
        flags=FLAGS,
        mounts="".join(mounts),
        image=shlex.quote(job.image),
        login=f"log_in {shlex.quote(registry)} && " if private else "",
        set_ups=SET_UPS,
        allowed=job.max_restarts + 1,
        grace=job.grace_seconds,
        options=shlex.join([*options, job.image]),
        command=shlex.join(job.command),
    )


def submit_command(job: JobDescription, path: str) -> list[str]:
    return ["bash", path, "create"]


def advice(job: JobDescription, path: str, output: str) -> dict[str, str]:
    """Commands for afterwards."""
    watch = "keep asking" if job.capacity == "spot" else "stop when done"
    verbs = {"follow": "logs", "state": "state", watch: "watch", "stop": "stop"}
    return {purpose: f"bash {path} {verb}" for purpose, verb in verbs.items()}
