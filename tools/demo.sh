#!/bin/sh
# Runs the demo. LAM_SPARK_SECRET is the key of the pseudonyms. If it is not set, a random key is created once and
# stored outside the checkout, readable by its owner only.
set -eu
if [ -z "${LAM_SPARK_SECRET:-}" ]; then
    file="${XDG_CONFIG_HOME:-$HOME/.config}/lam_spark/demo.secret"
    if [ ! -s "$file" ]; then
        mkdir -p "$(dirname "$file")"
        (umask 077 && .venv/bin/python -c 'import secrets; print(secrets.token_hex(32))' >"$file.$$")
        mv "$file.$$" "$file"
        echo "Created the key of the demo's pseudonyms: $file"
    fi
    LAM_SPARK_SECRET="$(cat "$file")"
    export LAM_SPARK_SECRET
fi
exec .venv/bin/lam-spark run --conf conf/complete_journey.yaml "$@"
