#!/bin/sh
# Finds Python 3.11 and runs setup.py with it. PYTHON=/path/to/python3.11 selects one.
set -eu
is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

for candidate in ${PYTHON:-python3.11 python3 python}; do
    if is_311 "$candidate"; then
        exec "$candidate" -I "$(dirname "$0")/setup.py" "$@"
    fi
done
{
    echo "[set-up] stopped: expected Python 3.11, '${PYTHON:-python3.11, python3 or python}' is not Python 3.11."
    echo "  Install it, for example:"
    echo "    Debian 12:     apt install python3.11 python3.11-dev python3.11-venv"
    echo "    Fedora, RHEL:  dnf install python3.11 python3.11-devel"
    echo "    elsewhere:     pyenv install 3.11"
    echo "  or select one: make PYTHON=/path/to/python3.11 ..."
} >&2
exit 1
