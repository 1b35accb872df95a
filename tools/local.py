"""`make local`: the stack as plain processes. Seed, serve and heal, without Docker."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from tools import ROOT
from tools.private_database import private_database

INTERVAL = 5  # seconds between probes
RETRIES = 3  # failed probes that make the server unhealthy


def main() -> None:
    """Run the stack until SIGINT or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    address = os.environ.get("APP_ADDRESS") or "127.0.0.1"
    port = int(os.environ.get("APP_PORT") or 5000)
    require_free_port(address, port)
    with suppress(KeyboardInterrupt), private_database() as database:
        if start("seed.py", database.env("seeder")).wait() != 0:
            raise SystemExit("The seeder failed.")
        print(f"http://localhost:{port} - Ctrl-C ends it", flush=True)
        own = {
            "HOST": address,
            "PORT": str(port),
            "ALLOWED_HOSTS": os.environ.get("ALLOWED_HOSTS") or "localhost",
        }
        serve_and_heal(database.env("app") | own)


def require_free_port(address: str, port: int) -> None:
    """Exit with a message if the port cannot be used."""
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        message = f"Port {port} cannot be used: {error.strerror}."
        raise SystemExit(f"{message} Try APP_PORT=5001 make local.") from None


def serve_and_heal(settings: dict[str, str]) -> None:
    """Run the server; restart it when it ends or becomes unhealthy."""
    while True:
        server = start("server.py", settings)
        try:
            wait_until_unhealthy(server, settings)
        finally:
            stop(server)
        print("restarting the server", flush=True)


def wait_until_unhealthy(server: subprocess.Popen[bytes], settings: dict[str, str]) -> None:
    """Return when RETRIES probes in a row have failed, or the server has ended."""
    probe = [sys.executable, f"{ROOT}/probe.py"]
    failures = 0
    while failures < RETRIES and server.poll() is None:
        time.sleep(INTERVAL)
        done = subprocess.run(
            probe, env=os.environ | settings, check=False, capture_output=True, text=True
        )
        if done.returncode == 0:
            failures = 0
        else:
            failures += 1
            print(f"probe {failures} failed: {(done.stdout + done.stderr).strip()}", flush=True)


def start(program: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in its own session: Ctrl-C reaches only `make local`, not the program."""
    command = [sys.executable, f"{ROOT}/{program}"]
    return subprocess.Popen(command, env=os.environ | settings, start_new_session=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process: SIGTERM, and SIGKILL after 10 s."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()


if __name__ == "__main__":
    main()
