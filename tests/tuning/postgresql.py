"""A PostgreSQL server on loopback that tests start, stop and start again."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy

USER = "searcher"


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl`, if PostgreSQL is installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    # Debian keeps them out of the path, in one folder for each version.
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda path: int(path.parent.name),
    )
    return folders[-1] if folders else None


def what_is_missing() -> str | None:
    """Why no server can be started here."""
    if sys.platform == "win32":
        return "the fixture starts the server as on Unix"
    if programs() is None:
        return "PostgreSQL (Debian: apt-get install postgresql) is missing"
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        return "setpriv is missing, and the server refuses to run as root"
    if importlib.util.find_spec("psycopg") is None:
        return "the driver psycopg is missing"
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def create_database(server: str, test: str) -> str:
    """Makes a database for a test; returns its URL."""
    name = f"search_{abs(hash(test))}"
    admin = sqlalchemy.create_engine(
        f"{server}/postgres", isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'CREATE DATABASE "{name}"'))
    admin.dispose()
    return f"{server}/{name}"


class Server:
    """The server; `start` it first, and `remove` it at the end.

    Args:
        password: What connections must give. Defaults to `None`, for anything.
    """

    def __init__(self, password: str | None = None):
        self.port = free_port()
        self._password = password
        # Not below pytest's own folder, which only its owner may enter.
        self._folder = Path(
            subprocess.check_output(["mktemp", "-d"], text=True).strip()
        )
        authentication = ["--auth=trust"]
        if password is not None:
            file = self._folder / "password"
            file.write_text(password)
            authentication = ["--auth=scram-sha-256", f"--pwfile={file}"]
        if os.getuid() == 0:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, 65534, 65534)
        self._run(
            "initdb",
            *("--pgdata", self._folder / "data", f"--username={USER}"),
            *("--encoding=UTF8", "--no-sync", "--no-locale"),
            *authentication,
        )

    def start(self) -> None:
        options = (
            f"-p {self.port} -k {self._folder} -c fsync=off "
            "-c listen_addresses=127.0.0.1"
        )
        log = self._folder / "server.log"
        self._run(
            *("pg_ctl", "-D", self._folder / "data", "-l", log),
            *("-o", options, "-w", "start"),
        )

    def stop(self) -> None:
        """Ends it at once, in the midst of what it does."""
        self._run(
            *("pg_ctl", "-D", self._folder / "data"),
            *("-m", "immediate", "-w", "stop"),
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops all its processes; connections stay, and nobody answers."""
        file = self._folder / "data" / "postmaster.pid"
        parent = file.read_text().split()[0]
        stopped = [int(parent)]
        os.kill(stopped[0], signal.SIGSTOP)  # it starts no other one now
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # another test's, and gone
                fields = path.read_text().rpartition(")")[2].split()
                if fields[1] == parent:
                    stopped.append(int(path.parent.name))
                    os.kill(stopped[-1], signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    def is_running(self) -> bool:
        return (self._folder / "data" / "postmaster.pid").exists()

    def remove(self) -> None:
        if self.is_running():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """Its URL, without a database."""
        password = self._password or "secret"
        return f"postgresql+psycopg://{USER}:{password}@127.0.0.1:{self.port}"

    def _run(self, program: str, *arguments: str | Path) -> None:
        folder = programs()
        assert folder is not None
        # The server refuses to run as root.
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run(
            [
                *(user if os.getuid() == 0 else []),
                folder / program,
                *arguments,
            ],
            # A pipe would stay open for as long as the server lives.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
        )
        assert done.returncode == 0, f"{program} {arguments}"
