#!/bin/bash
# create  ask for the TPUs; they train as soon as they are there
# watch   ask again when they were taken away, give them back when the run has ended
# logs    follow host 0
# state   where the request stands
# stop    give everything back; until then it costs, whether it trains or not
set -euo pipefail
where=(--project=my-project --zone=us-east5-a)

boot=$(mktemp)
trap 'rm -f "$boot"' EXIT
cat > "$boot" <<'BOOT'
#!/bin/bash
# Every host runs this as root at each boot, so also after maintenance.
exec >> /var/log/kosmos.log 2>&1
[ -e /var/lib/kosmos-ended ] && exit
gcloud auth configure-docker us-docker.pkg.dev --quiet

# Without its bucket a run would begin anew on the host's own disk: then it does not start.
mount_buckets() {
    command -v gcsfuse || install_gcsfuse || return
    mkdir -p /runs
    mountpoint -q /runs || gcsfuse -o allow_other --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 my-runs /runs || return
    mkdir -p /data
    mountpoint -q /data || gcsfuse -o allow_other --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 my-data /data || return
}
install_gcsfuse() {
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc &&
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt" \
            "gcsfuse-$(lsb_release -cs) main" > /etc/apt/sources.list.d/gcsfuse.list &&
        apt-get update && apt-get install -y gcsfuse
}

failures=0
until [ $failures -gt 10 ]; do
    echo "== start on $(hostname), $(date -Is)"
    # With the host's network and devices, JAX finds the other hosts as it does without a container.
    docker rm --force kosmos
    mount_buckets && docker run --name kosmos --init --privileged --net=host --ipc=host --stop-timeout=300 \
        --volume=/runs:/runs --volume=/data:/data us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0 \
        kosmos train --config configs/kosmos1.py --workdir /runs/kosmos1-v5e --config.data.batch_rows=512 --config.mesh.data=8 --config.mesh.fsdp=64
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
BOOT

tpu() { gcloud compute tpus "$@" "${where[@]}"; }
state() { tpu queued-resources describe kosmos1-v5e --format='value(state.state)'; }
on_host_0() { tpu tpu-vm ssh kosmos1-v5e-0 --worker=0 --command="$1"; }

create() {
    tpu queued-resources create kosmos1-v5e \
        --accelerator-type=v5litepod-256 \
        --runtime-version=v2-alpha-tpuv5-lite \
        --node-count=2 \
        --node-prefix=kosmos1-v5e \
        --spot \
        --metadata-from-file=startup-script="$boot"
}
stop() { tpu queued-resources delete kosmos1-v5e --force --quiet; }
watch() {
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
}
logs() { on_host_0 'sudo tail -n 100 -F /var/log/kosmos.log'; }

case ${1:-} in
    create | watch | logs | state | stop) "$1" ;;
    *) echo "usage: bash $0 create|watch|logs|state|stop" >&2; exit 2 ;;
esac
