"""Sets up this checkout: build tools, .venv, the Horovod wheel, this project, jars.

`make setup` (which `make demo` and `make test` run first) calls it through setup.sh. It uses the standard library
only and does nothing when nothing changed. Expensive parts are kept in a cache folder that all checkouts share:

    ${XDG_CACHE_HOME:-~/.cache}/lam_spark/
        tools/<key>/              uv, CMake and wheel, from requirements-build.lock
        horovod/<key>/*.whl       the patched Horovod wheel, per torch, Python, machine, flavour and patch
        jars/<name>-<version>/    Delta's jars, PostgreSQL's JDBC driver (tools/fetch_jars.py)
        logs/<checkout>/          the last log of each step

`setup.py lock` resolves both lock files (`make lock`; `make lock ARGS=--upgrade` upgrades versions).
`setup.py horovod-dir` prints the folder of the Horovod wheel.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))  # python -I omits the script's folder

import fetch_jars  # noqa: E402

CACHE = fetch_jars.cache_root()
LOGS = CACHE / "logs" / hashlib.sha256(bytes(ROOT)).hexdigest()[:12]  # of this checkout
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "lam_spark-set-up"
LOCK = ROOT / "requirements.lock"
BUILD_LOCK = ROOT / "requirements-build.lock"

HOROVOD_VERSION = "0.28.1"
HOROVOD_SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
HOROVOD_PATCH = ROOT / "patches" / f"horovod-{HOROVOD_VERSION}-cxx17.patch"

EXTRAS = ("demo", "notebooks", "dev", "baselines")
# CMake 4 rejects the old minimum versions in Horovod's third-party code.
BUILD_TOOLS = ("uv", "cmake<4", "wheel")
LOCK_HEADER = "# Written by `make lock` for Python 3.11 on Linux, x86_64 and aarch64. Do not edit."
JAVA_VERSIONS = (17, 21)
HEARTBEAT_S = 30.0

# Variables of the caller's make, virtual environment or Python that must not reach our commands.
REMOVED_VARIABLES = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}

Command = list[str | Path]


class SetUpError(Exception):
    """The set-up cannot continue; the message gives the cause and what to do."""


def log_line(text: str) -> None:
    """Print one line of progress."""
    print(f"[set-up] {text}", flush=True)


@contextlib.contextmanager
def step(number: int, text: str) -> Iterator[None]:
    """Print the start and the duration of a step."""
    print(f"[set-up {number}/5] {text}...", flush=True)
    start = time.monotonic()
    yield
    print(f"[set-up {number}/5] done in {time.monotonic() - start:.0f} s", flush=True)


def digest(*parts: str | bytes) -> str:
    """First 12 hex digits of the sha256 of the parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part)
        sha.update(b"\0")
    return sha.hexdigest()[:12]


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold a file lock; the kernel releases it when the process ends for any reason."""
    folder = CACHE / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log_line(f"waiting for another set-up, which holds the lock {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(log_name: str, command: Command, *, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> None:
    """Run a command with its output in a log file; `SetUpError` with the end of the log if it fails."""
    log = LOGS / f"{log_name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with open(log, "ab") as out:
        out.write(f"$ {' '.join(words)}\n".encode())
        out.flush()
        start = time.monotonic()
        # stdin is closed, so that no command waits for input
        with subprocess.Popen(
            words, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        ) as process:
            while True:
                try:
                    code = process.wait(HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    log_line(f"  {time.monotonic() - start:.0f} s: {last_line(log)}")
    if code != 0:
        tail = "\n".join(log_tail(log, 40))
        raise SetUpError(
            f"{Path(words[0]).name} failed with exit status {code}\n{tail}\n\nThe full log is {log}"
        )


def log_tail(log: Path, count: int) -> list[str]:
    """Last lines of a log, without the frames of a final Python traceback."""
    lines = log.read_text(errors="replace").splitlines()
    tracebacks = [at for at, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if tracebacks:
        lines = [*lines[: tracebacks[-1]], lines[-1]]
    return lines[-count:]


def last_line(log: Path) -> str:
    """Last line of a log, or the last progress line of make (`[ 42%] ...`)."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if re.match(r"\[ *\d+%\]", line)), lines[-1])[:90]


def fresh_log(name: str) -> None:
    (LOGS / f"{name}.log").unlink(missing_ok=True)


def clean_env(**more: str) -> dict[str, str]:
    """Environment for commands: without the caller's Python and make settings, with `more`."""
    env = {name: value for name, value in os.environ.items() if name not in REMOVED_VARIABLES}
    if "PIP_INDEX_URL" in env:  # a mirror for pip is a mirror for uv
        env.setdefault("UV_DEFAULT_INDEX", env["PIP_INDEX_URL"])
    return env | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | more


def locked_version(package: str) -> str:
    """Version of a package in requirements.lock."""
    match = re.search(rf"^{re.escape(package)}==([^\s;\\]+)", LOCK.read_text(), re.MULTILINE)
    if match is None:
        raise SetUpError(f"expected {package} in {LOCK.name}, found none: run make lock")
    return match[1]


def java_problem() -> str | None:
    """What is wrong with Java on this machine, with advice; None if nothing."""
    advice = (
        "Install it, for example: apt install openjdk-17-jre-headless (Debian, Ubuntu), "
        "dnf install java-17-openjdk-headless (Fedora, RHEL); or set JAVA_HOME to one."
    )
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    versions = " or ".join(str(version) for version in JAVA_VERSIONS)
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return f"Java {versions}, which Spark runs on: none found at '{java}'. {advice}"
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    if match is None or int(match[1]) not in JAVA_VERSIONS:
        return f"Java {versions}, which Spark runs on: '{java}' is version {match[1] if match else '?'}. {advice}"
    return None


def compiler_problem() -> str | None:
    """What is wrong with the C++ compiler, with advice; None if nothing."""
    advice = "Install one, for example: apt install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora, RHEL)."
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    cxx = next((name for name in names if name and shutil.which(name)), None)
    if cxx is None:
        return f"A C++ compiler, which builds Horovod once: none found. {advice}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cc"
        source.write_text("#include <optional>\nint main() { return std::optional<int>{0}.value(); }\n")
        probe = [cxx, "-std=c++17", "-o", str(source.with_suffix("")), str(source)]
        done = subprocess.run(probe, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"A C++17 compiler, which builds Horovod once: '{cxx}' fails on C++17. {advice}"
    return None


def prerequisite_problems() -> list[str]:
    """What this machine lacks, one line each."""
    problems = []
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        problems.append("Linux on x86_64 or aarch64: the locked versions have wheels for these only.")
    if sys.version_info[:2] != (3, 11):
        problems.append(f"Python 3.11: this is {platform.python_version()}. Select one with make PYTHON=...")
    if (problem := java_problem()) is not None:
        problems.append(problem)
    if importlib.util.find_spec("ensurepip") is None:
        problems.append("Python's venv module. Install it, for example: apt install python3.11-venv.")
    return problems if horovod_wheel() else problems + horovod_build_problems()


def horovod_build_problems() -> list[str]:
    problems = []
    if (problem := compiler_problem()) is not None:
        problems.append(problem)
    if not shutil.which("make"):
        problems.append("make. Install it, for example: apt install make, dnf install make.")
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        problems.append(
            "Python's C headers, which the Horovod build needs. Install them, for example: "
            "apt install python3.11-dev (Debian), dnf install python3.11-devel (Fedora, RHEL)."
        )
    cuda = shutil.which("nvcc") or os.environ.get("HOROVOD_CUDA_HOME") or os.path.exists("/usr/local/cuda")
    if flavour() == "nccl" and not cuda:
        problems.append(
            "A CUDA toolkit, which LAM_SPARK_HOROVOD_GPU=NCCL needs to build Horovod: no nvcc found. "
            "Install one with NCCL's headers, or set HOROVOD_CUDA_HOME and HOROVOD_NCCL_HOME to their folders."
        )
    return problems


def tools_dir() -> Path:
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    return CACHE / "tools" / digest(BUILD_LOCK.read_bytes(), python, sys.version)


def make_tools() -> None:
    folder = tools_dir()
    complete = folder / "complete"
    with exclusive("tools"):
        if complete.exists():
            return
        fresh_log("tools")
        run("tools", [sys.executable, "-m", "venv", "--clear", folder])
        pip: Command = [folder / "bin" / "python", "-m", "pip", "install"]
        pip += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", BUILD_LOCK]
        run("tools", pip, env=clean_env())
        complete.touch()


def venv_fits() -> bool:
    """Whether .venv exists, works, and was made by the interpreter that runs this."""
    config = VENV / "pyvenv.cfg"
    return (
        VENV_PYTHON.exists()
        and config.is_file()
        and f"version = {platform.python_version()}" in config.read_text().splitlines()
        and os.path.realpath(VENV_PYTHON) == os.path.realpath(sys.executable)
    )


def uv(*words: str | Path) -> Command:
    return [tools_dir() / "bin" / "uv", *words]


def make_venv() -> None:
    fresh_log("venv")
    if not venv_fits():
        run("venv", [sys.executable, "-m", "venv", "--without-pip", "--clear", VENV], env=clean_env())
    sync = uv("pip", "sync", "--python", VENV_PYTHON, "--require-hashes", LOCK)
    # pyspark has no wheel: the locks also hold its build requirements.
    sync += ["--build-constraints", LOCK, "--build-constraints", BUILD_LOCK]
    run("venv", sync, env=clean_env())


def flavour() -> str:
    """Build of Horovod: `cpu` or `nccl`."""
    value = os.environ.get("LAM_SPARK_HOROVOD_GPU", "")
    if value.upper() not in ("", "NCCL"):
        raise SetUpError(
            f"expected LAM_SPARK_HOROVOD_GPU unset (CPU) or NCCL, found '{value}': change or unset it"
        )
    return value.lower() or "cpu"


def horovod_dir() -> Path:
    torch = f"torch{locked_version('torch')}"
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    patch = digest(HOROVOD_PATCH.read_bytes())[:8]
    key = (HOROVOD_VERSION, torch, python, platform.machine(), flavour(), patch)
    return CACHE / "horovod" / "-".join(key)


def horovod_wheel() -> Path | None:
    return next(iter(sorted(horovod_dir().glob("horovod-*.whl"))), None)


def apply_patch(patch: str, folder: Path) -> None:
    """Apply a unified diff without fuzz or offset; a machine may lack the program `patch`."""
    files = re.split(r"^--- a/.*\n\+\+\+ b/", patch, flags=re.MULTILINE)[1:]
    if not files:
        raise SetUpError("the patch changes no file")
    for part in files:
        name, _, hunks = part.partition("\n")
        target = folder / name
        old = target.read_text().split("\n")
        new: list[str] = []
        at = 0
        for line in hunks.split("\n")[:-1]:
            if header := re.match(r"@@ -(\d+)", line):
                start = int(header[1]) - 1
                new += old[at:start]
                at = start
            elif line[:1] == "+":
                new.append(line[1:])
            else:
                if old[at] != line[1:]:
                    raise SetUpError(f"the patch does not match {name}, line {at + 1}")
                if line[:1] == " ":
                    new.append(old[at])
                at += 1
        target.write_text("\n".join(new + old[at:]))


def jobs() -> int:
    """Number of parallel compilers; each needs about 1.5 GiB for torch's headers."""
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), 8, int(free_gib / 1.5)))


def build_horovod(work: Path) -> Path:
    """Download, verify, patch and build the source archive in the folder `work`; returns the wheel."""
    tools = tools_dir()
    python = tools / "bin" / "python"
    # The build needs torch and setuptools of .venv, so its packages come first.
    site = next(VENV.glob("lib/python3.*/site-packages"))
    path = f"{tools / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    env = clean_env(PYTHONPATH=str(site), PATH=path)
    requirement = work / "requirement.txt"
    requirement.write_text(f"horovod=={HOROVOD_VERSION} --hash=sha256:{HOROVOD_SDIST_SHA256}\n")
    download: Command = [python, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    download += ["--no-binary", "horovod", "--require-hashes", "-d", work, "-r", requirement]
    run("horovod", download, env=env)

    sdist = work / f"horovod-{HOROVOD_VERSION}.tar.gz"
    if (sha256 := hashlib.sha256(sdist.read_bytes()).hexdigest()) != HOROVOD_SDIST_SHA256:
        raise SetUpError(f"{sdist.name}: expected sha256 {HOROVOD_SDIST_SHA256}, found {sha256}")
    with tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
    source = work / f"horovod-{HOROVOD_VERSION}"
    apply_patch(HOROVOD_PATCH.read_text(), source)

    env |= {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "MAKEFLAGS": f"-j{jobs()}",
    }
    if flavour() == "nccl":
        env["HOROVOD_GPU_OPERATIONS"] = "NCCL"
    dist = work / "dist"
    run("horovod", [python, "setup.py", "bdist_wheel", "--dist-dir", dist], env=env, cwd=source)
    return next(dist.glob("*.whl"))


def make_horovod_wheel() -> Path:
    home = horovod_dir()
    with exclusive(f"horovod-{home.name}"):
        if (wheel := horovod_wheel()) is not None:
            return wheel
        fresh_log("horovod")
        home.parent.mkdir(parents=True, exist_ok=True)
        # Built in a temporary folder and moved in one step, so that an incomplete wheel is never visible.
        with tempfile.TemporaryDirectory(prefix=".build-", dir=home.parent) as folder:
            built = build_horovod(Path(folder))
            home.mkdir(exist_ok=True)
            built.rename(home / built.name)
    return home / built.name


def install_project(wheel: Path) -> None:
    fresh_log("project")
    install = uv("pip", "install", "--python", VENV_PYTHON, "--no-deps", "--offline", "--no-build-isolation")
    install += ["--reinstall-package", "horovod", wheel, "--editable", ROOT]
    run("project", install, env=clean_env())


def make_jars() -> None:
    with exclusive("jars"):
        fresh_log("jars")
        run("jars", [VENV_PYTHON, "-I", ROOT / "tools" / "fetch_jars.py"], env=clean_env())


def expected_stamp() -> str:
    """Digest of everything that determines the set-up."""
    files = (LOCK, BUILD_LOCK, HOROVOD_PATCH, ROOT / "pyproject.toml", Path(__file__))
    contents = [path.read_bytes() for path in files]
    return digest(str(ROOT), str(CACHE), os.path.realpath(sys.executable), sys.version, flavour(), *contents)


def is_set_up() -> bool:
    return (
        VENV_PYTHON.exists()
        and STAMP.exists()
        and STAMP.read_text() == expected_stamp()
        and not fetch_jars.incomplete_folders(hashed=False)
    )


def set_up() -> None:
    """Run the steps that are not done yet.

    Raises:
        SetUpError: The machine lacks something, or a step failed.
    """
    ready = is_set_up()
    problems = [java_problem()] if ready else prerequisite_problems()
    lines = [f"  - {problem}" for problem in problems if problem]
    if lines:
        raise SetUpError("\n".join(["this machine lacks", *lines]))
    if ready:
        return
    with exclusive(f"checkout-{digest(str(ROOT))}"):
        if is_set_up():
            return
        start = time.monotonic()
        with step(1, "uv and CMake"):
            make_tools()
        with step(2, ".venv from requirements.lock (the first time: downloads about 2.5 GB)"):
            STAMP.unlink(missing_ok=True)
            make_venv()
        source = "from the cache" if horovod_wheel() else "building it (once, 3 to 5 minutes on 2 cores)"
        with step(3, f"Horovod wheel, {flavour().upper()}: {source}"):
            wheel = make_horovod_wheel()
        with step(4, "Horovod and this project into .venv"):
            install_project(wheel)
        with step(5, "Delta's jars and PostgreSQL's JDBC driver"):
            make_jars()
        STAMP.write_text(expected_stamp())
        log_line(f"ready in {time.monotonic() - start:.0f} s; shared parts are in {CACHE}")


def resolve_lock(source: str | Path, lock: Path, arguments: Sequence[str]) -> None:
    """Resolve a lock file for both machine types; it must be the same for both."""
    contents = []
    for machine in ("x86_64", "aarch64"):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / lock.name
            if lock.exists():
                shutil.copy(lock, out)  # uv keeps the versions in this file without --upgrade
            command = uv("pip", "compile", source, "-o", out, "--quiet", "--no-header", "--no-annotate")
            command += ["--python-version", "3.11", "--python-platform", f"{machine}-unknown-linux-gnu"]
            command += ["--generate-hashes", *arguments]
            subprocess.run([str(word) for word in command], cwd=ROOT, env=clean_env(), check=True)
            contents.append(out.read_text())
    if contents[0] != contents[1]:
        raise SetUpError(f"{lock.name} would differ between x86_64 and aarch64: pin the package that differs")
    lock.write_text(f"{LOCK_HEADER}\n{contents[0]}")


def lock_versions(arguments: Sequence[str]) -> None:
    make_tools()
    with tempfile.TemporaryDirectory() as folder:
        build_in = Path(folder) / "build.in"
        build_in.write_text("\n".join(BUILD_TOOLS) + "\n")
        extras = [word for extra in EXTRAS for word in ("--extra", extra)]
        resolve_lock(ROOT / "pyproject.toml", LOCK, [*extras, *arguments])
        resolve_lock(build_in, BUILD_LOCK, arguments)


def main(arguments: Sequence[str]) -> int:
    try:
        match arguments:
            case []:
                set_up()
            case ["lock", *rest]:
                lock_versions(rest)
            case ["horovod-dir"]:
                print(horovod_dir())
            case _:
                raise SetUpError(f"unknown arguments: {' '.join(arguments)}")
    except SetUpError as error:
        print(f"[set-up] stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
