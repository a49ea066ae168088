#!/bin/sh
# Finds a Python 3.11 and hands over to setup.py beside this file. PYTHON=/path/to/python3.11 chooses one.
set -eu
is_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; }

for candidate in ${PYTHON:-python3.11 python3 python}; do
    if is_311 "$candidate"; then
        exec "$candidate" -I "$(dirname "$0")/setup.py" "$@"
    fi
done
{
    echo "[set-up] stopped: Python 3.11 is needed, and '${PYTHON:-python3.11, python3 or python}' is not one here."
    echo "  Install it, for example:"
    echo "    Debian 12:     apt install python3.11 python3.11-dev python3.11-venv"
    echo "    Fedora, RHEL:  dnf install python3.11 python3.11-devel"
    echo "    elsewhere:     pyenv install 3.11"
    echo "  or name one: make PYTHON=/path/to/python3.11 ..."
} >&2
exit 1
