#!/bin/sh
# What the container holds, in a folder of its own: install.sh FOLDER. Run by the Dockerfile, and by test.sh without it.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$1"
"$1/bin/pip" install --no-cache-dir --quiet -c "$here/constraints.txt" "$here[cpu]" bids-validator-deno
# A model that cannot be opened fails here, and not on the cluster.
"$1/bin/python" -c "from udean import SuperResolver; SuperResolver()"
