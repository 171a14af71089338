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
export HOME=/root
[ -e /var/lib/kosmos-ended ] && exit
failures=/var/lib/kosmos-failures
# Prints how often the run has failed since its newest checkpoint. Over weeks it may fail often, as long as it advances.
count_failure() {
    newest=$(cd /runs/kosmos1-v5e/checkpoints 2> /dev/null && ls -d [0-9]*/commit_success.txt 2> /dev/null | sort -n | tail -n 1)
    newest=${newest%%/*}
    echo "$(date -Is) status $1 after checkpoint ${newest:-none}" >> "$failures"
    grep -c "after checkpoint ${newest:-none}$" "$failures"
}

# Right after boot the system updates itself, and holds apt's locks meanwhile. `update` does not wait for its own.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 "$@"; }
install_gcsfuse() {
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc &&
        echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt" \
            "gcsfuse-$(lsb_release -cs) main" > /etc/apt/sources.list.d/gcsfuse.list &&
        apt update && apt install -y gcsfuse
}
# With the token of the machine's service account, which lasts an hour: long enough for a pull.
log_in() {
    local url=http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token
    curl -fsS -H 'Metadata-Flavor: Google' $url | sed 's/.*"access_token" *: *"\([^"]*\)".*/\1/' |
        docker login --username oauth2accesstoken --password-stdin "https://$1"
}

mount_bucket() {
    mountpoint -q "$2" && return
    umount --lazy "$2" 2> /dev/null  # a mount whose process died is in the way of another
    mkdir -p "$2" && gcsfuse -o allow_other --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$1" "$2"
}
# Without its bucket a run would begin anew on the host's own disk: then it does not start.
set_up() {
    command -v gcsfuse || install_gcsfuse || return
    mount_bucket my-runs /runs || return
    mount_bucket my-data /data || return
    docker image inspect us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0 > /dev/null && return
    log_in us-docker.pkg.dev && docker pull --quiet us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0
}
start() {
    set_up || return 125  # as Docker says that a container did not even start
    docker rm --force kosmos
    # With the host's network and devices, JAX finds the other hosts as it does without a container.
    docker run --name kosmos --init --privileged --net=host --ipc=host --stop-timeout=300 \
        --volume=/runs:/runs --volume=/data:/data us-docker.pkg.dev/my-project/my-images/kosmos-tpu:0.1.0 \
        kosmos train --config configs/kosmos1.py --workdir /runs/kosmos1-v5e --config.data.batch_rows=512 --config.mesh.data=8 --config.mesh.fsdp=64
}

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
            if [ "$set_ups" -ge 290 ]; then
                echo "== this host gives up: see above why the container did not start $set_ups times in a row"
                break
            fi
            ;;
        *)
            pause=10 count=$(count_failure $status)
            echo "== failure $count of 51 without a new checkpoint before this host gives up"
            [ "$count" -ge 51 ] && break
            ;;
    esac
    echo "== next start in $pause s"
    sleep $pause
done
touch /var/lib/kosmos-ended
BOOT

tpu() { gcloud compute tpus "$@" "${where[@]}"; }
state() { tpu queued-resources describe kosmos1-v5e --format='value(state.state)'; }
on_host_0() { tpu tpu-vm ssh kosmos1-v5e-0 --worker=0 --command="$1"; }

create() {
    gcloud alpha compute tpus queued-resources create kosmos1-v5e "${where[@]}" \
        --type=v5litepod \
        --topology=16x16 \
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
