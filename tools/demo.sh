#!/bin/sh
# Runs the demo. The key of the pseudonyms is LAM_SPARK_SECRET; without one, a random key is made once and kept
# outside the checkout, readable by its owner only.
set -eu
if [ -z "${LAM_SPARK_SECRET:-}" ]; then
    file="${XDG_CONFIG_HOME:-$HOME/.config}/lam_spark/demo.secret"
    if [ ! -s "$file" ]; then
        mkdir -p "$(dirname "$file")"
        (umask 077 && .venv/bin/python -c 'import secrets; print(secrets.token_hex(32))' >"$file.$$")
        mv "$file.$$" "$file"
        echo "A key for the demo's pseudonyms was made: $file"
    fi
    LAM_SPARK_SECRET="$(cat "$file")"
    export LAM_SPARK_SECRET
fi
exec .venv/bin/lam-spark run --conf conf/complete_journey.yaml "$@"
