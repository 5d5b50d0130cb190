#!/bin/bash
# One run on a Cloud TPU pod slice. See tpu_pod.md.
#
#   export NAME=diffenc ZONE=us-central2-b ACCELERATOR=v4-32 RUNTIME=tpu-ubuntu2204-base
#
#   tpu_pod.sh create        request the slice, and wait until it is active
#   tpu_pod.sh install       install this checkout on all hosts
#   tpu_pod.sh run FLAG...   run diffenc.run on all hosts
#   tpu_pod.sh stop          send SIGTERM to the run, which saves
#   tpu_pod.sh delete        delete the slice
#   tpu_pod.sh train FLAG... create, install and run; again after each preemption, until the run is done
set -euo pipefail

: "${NAME:?of the slice}" "${ZONE:?as us-central2-b}" "${ACCELERATOR:?as v4-32}" "${RUNTIME:?as tpu-ubuntu2204-base}"
PRICE=${PRICE---spot} # empty for a slice on demand, or --reserved
PREPARE=${PREPARE-:}  # command to run on all hosts after the installation
PAUSE=${PAUSE-30}     # seconds between checks of the slice
TRIES=3               # of a run that fails on an existing slice

log() { echo "[tpu_pod] $*" >&2; }

state() {
    gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null
}

create() {
    # PRICE is one flag or none
    # shellcheck disable=SC2086
    gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
        --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" $PRICE
    local now
    until now=$(state) && [[ $now == ACTIVE ]]; do
        case $now in
        FAILED | SUSPEND*) log "the slice is not available: $now" && return 1 ;;
        esac
        log "${now:-requested}; waiting"
        sleep "$PAUSE"
    done
}

delete() {
    gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# The Python of the hosts is too old: uv installs another.
INSTALL='set -e
rm -rf diffenc && mkdir diffenc && tar -xzf diffenc.tar.gz -C diffenc
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python 3.12 venv
~/.local/bin/uv pip install --quiet --python venv --constraint diffenc/constraints.txt ./diffenc "jax[tpu]"'

install() {
    local archive
    archive=$(mktemp -d)/diffenc.tar.gz
    tar -C "$(dirname "$0")/../.." --exclude=__pycache__ -czf "$archive" \
        diffenc plugins gin pyproject.toml constraints.txt README.md LICENSE
    gcloud compute tpus tpu-vm scp "$archive" "$NAME": --zone="$ZONE" --worker=all
    rm -r "$(dirname "$archive")"
    on_all_hosts "$INSTALL"$'\n'"$PREPARE"
}

# shellcheck disable=SC2016 # expanded by the shells of the hosts
STOP='if [ -f run.pid ]; then
    pid=$(cat run.pid)
    kill -TERM "$pid" 2>/dev/null
    for _ in $(seq 120); do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
    kill -KILL "$pid" 2>/dev/null
    rm run.pid
fi'

stop() { on_all_hosts "$STOP"; }

run() {
    local flags
    flags=$(printf ' %q' "$@")
    # a run left by a lost connection would still hold the TPU
    on_all_hosts "$STOP"$'\necho $$ > run.pid\nexec venv/bin/python -m diffenc.run --distributed'"$flags"
}

train() {
    local failed=0 status
    while :; do
        if [[ $(state) != ACTIVE ]]; then
            log "creating a new slice"
            delete 2>/dev/null || true
            create
            install
            failed=0
        fi
        status=0
        run "$@" || status=$?
        [[ $status == 0 ]] && return
        sleep "$PAUSE" # until a preemption is visible in the state
        [[ $(state) == ACTIVE ]] || continue
        failed=$((failed + 1))
        log "the run ended with status $status, $failed of $TRIES times"
        [[ $status == 143 || $failed == "$TRIES" ]] && return "$status"
    done
}

case ${1-} in
create | install | stop | delete) "$1" ;;
run | train) "$@" ;;
*) sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0" >&2 && exit 2 ;;
esac
