#!/bin/sh
# The container's command in a sandbox without Docker: test.sh VENV BIDS_DIR OUTPUT_DIR ARGUMENTS...
# VENV: made by install.sh. Everything is read-only but OUTPUT_DIR and /tmp, and there is no network.
set -eu
venv=$1 data=$2 out=$3
shift 3
mkdir -p "$out"
exec bwrap --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --ro-bind "$venv" "$venv" --ro-bind "$data" "$data" \
    --bind "$out" "$out" --unshare-net --unshare-pid --die-with-parent --setenv HOME /tmp \
    "$venv/bin/udean-bids" "$data" "$out" "$@"
