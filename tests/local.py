"""`make local`: the scenario of docker-compose.yml as plain processes, which seeds, serves and heals."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from tests.database import private_database
from tests.helpers import ROOT


def start(program: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, ROOT / program], env=os.environ | settings, start_new_session=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process: SIGTERM, and SIGKILL after 10 s."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()  # if it has not ended
    process.wait()


def serve_and_heal(settings: dict[str, str]) -> None:
    """Run server.py; restart it when it ends, and after three failed probes 5 s apart."""
    probe = [sys.executable, f"{ROOT}/probe.py"]
    while True:
        server = start("server.py", settings)
        try:
            failures = 0
            while failures < 3 and server.poll() is None:
                time.sleep(5)
                done = subprocess.run(probe, env=os.environ | settings, check=False, capture_output=True, text=True)
                failures = failures + 1 if done.returncode else 0
                if failures:
                    print(f"probe {failures} failed: {(done.stdout + done.stderr).strip()}", flush=True)
        finally:
            stop(server)
        print("restarting the server", flush=True)


def main() -> None:
    """Run the scenario until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address, port = os.environ.get("APP_ADDRESS") or "127.0.0.1", int(os.environ.get("APP_PORT") or 5000)
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        raise SystemExit(f"Port {port} cannot be had: {error.strerror}. Try APP_PORT=5001 make local.") from None
    with suppress(KeyboardInterrupt), private_database() as database:
        if start("seed.py", database.env("seeder")).wait():
            raise SystemExit("The seeder failed.")
        print(f"http://localhost:{port} - Ctrl-C ends it", flush=True)
        hosts = {"ALLOWED_HOSTS": os.environ.get("ALLOWED_HOSTS") or "localhost"}
        serve_and_heal(database.env("app") | hosts | {"HOST": address, "PORT": str(port)})


if __name__ == "__main__":
    main()
