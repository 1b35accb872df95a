"""docs/kubernetes.md on the cluster of kubectl: `make cluster`. `make test` skips this file.

The tests run the commands of the document, in order. Each test needs the tests before it.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from tests.conftest import Report
from tests.documents import Document
from tests.platforms.load import GET, Outcome, RequestsFailed, load
from tests.shell import run_command
from tools.waiting import free_port, get, until

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER") != "1", reason="needs a Kubernetes cluster: make cluster"
)

DOCUMENT = Document("docs/kubernetes.md", "sh")
IMAGE = f"{os.environ.get('REGISTRY', '')}cct-app:{os.environ.get('TAG', 'latest')}"
KUBECTL = "kubectl --namespace cct"
CLIENT = "kubectl --namespace default exec --stdin cct-client --"
APP = f"{KUBECTL} exec --stdin deployment/app --"
DB = f"{KUBECTL} exec db-0 --"
APP_PODS = "--selector app.kubernetes.io/name=app"
TWO_PASSWORDS = "SELECT COUNT(*) FROM mysql.user WHERE User_attributes LIKE '%additional_pass%'"


def sh(commands: str, stdin: str = "") -> str:
    """Run commands in bash, and return their output; raise AssertionError if one fails."""
    return run_command("bash", "-e", "-o", "pipefail", "-c", commands, stdin=stdin)


def run(*names: str, first: str = "") -> str:
    """Run commands of the document in one shell, after the command `first`."""
    commands = [DOCUMENT.commands(name) for name in ("Name the images", *names)]
    return sh("\n".join([first, *commands]))


def update_with(change: str) -> str:
    """Change the file with sed, and run the document's commands for an update."""
    commands = DOCUMENT.commands("Update").replace("manifest |", f"manifest | sed '{change}' |")
    return sh(DOCUMENT.commands("Name the images") + commands)


def wait_for_seeder() -> None:
    """Wait until the Job is complete."""
    sh(f"{KUBECTL} wait --for=condition=Complete --timeout=5m job/seeder")


def page() -> str:
    """Return the page that the client gets from the Service."""
    return sh(f"{CLIENT} python - app.cct /", GET)


def reaches(place: str, address: str) -> bool:
    """Return whether a pod can connect to HOST/PORT."""
    command = f"timeout 3 bash -c '</dev/tcp/{address}' 2>/dev/null && echo yes || true"
    return sh(f"{place} {command}") == "yes\n"


def settled() -> dict[str, int]:
    """Return the number of restarts of each pod of the app; empty unless all pods are ready."""
    replicas = int(sh(f"{KUBECTL} get deployment app --output jsonpath='{{.spec.replicas}}'"))
    restarts = {}
    for line in sh(f"{KUBECTL} get pods {APP_PODS} --no-headers").splitlines():
        name, ready, _, count, *_ = line.split()
        if ready != "1/1":
            return {}
        restarts[name] = int(count)
    return restarts if len(restarts) == replicas else {}


def heal(pod: str) -> None:
    """Make a pod unhealthy, and wait until it is healed."""
    restarts = settled()[pod]
    client_in_pod = f"{KUBECTL} exec --stdin {pod} -- python - 127.0.0.1:8080"
    sh(f"{client_in_pod} /make-unhealthy", GET)
    until(lambda: settled().get(pod) == restarts + 1, "healed", 180)


def busy(report: Report, event: str) -> AbstractContextManager[Outcome]:
    """Keep the app busy until the end of the context; raise AssertionError if a request fails."""
    return load(CLIENT.split(), "app.cct", report, event)


@pytest.fixture(scope="module")
def client() -> Iterator[str]:
    """Start the client, a pod in another namespace; yield the pod's address.

    The pod also serves on port 8080. At the end, delete everything that the tests made.
    """
    if sh("kubectl get namespace cct --ignore-not-found"):
        pytest.exit("There is a namespace cct already. These tests would delete it.", returncode=1)
    default = "kubectl --namespace default"
    options = f"--image={IMAGE} --image-pull-policy=IfNotPresent"
    try:
        sh(f"{default} run cct-client {options} -- python -m http.server 8080")
        sh(f"{default} wait --for=condition=Ready --timeout=5m pod/cct-client")
        yield sh(f"{default} get pod cct-client --output jsonpath='{{.status.podIP}}'")
    finally:
        sh(f"{default} delete pod cct-client --now --ignore-not-found")
        sh("kubectl delete namespace cct --ignore-not-found")


def test_installation_ends_with_pages(client: str, report: Report) -> None:
    began = time.monotonic()
    run("Apply the file")
    assert len(settled()) == 3
    assert "account50@example.com" in page()
    report(f"installation: {time.monotonic() - began:.1f} s")


def test_applied_file_shows_no_difference(client: str) -> None:
    assert run("See what applying the file would change") == ""


def test_namespace_refuses_a_pod_with_more_rights(client: str) -> None:
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        sh(f"{KUBECTL} run plain --image={IMAGE}")


def test_policies_let_only_the_right_packets_through(client: str) -> None:
    client_server = f"{client}/8080"
    until(lambda: reaches(CLIENT, client_server), "started")
    assert reaches(CLIENT, "app.cct/80")
    assert reaches(APP, "db.cct/3306")
    from_outside = reaches(CLIENT, "db.cct/3306")
    to_outside = reaches(APP, client_server)
    if from_outside and to_outside:
        pytest.skip("the network plugin of this cluster does not enforce NetworkPolicies")
    assert not from_outside
    assert not to_outside


def test_scaling_fails_no_request(client: str, report: Report) -> None:
    with busy(report, "scale to 2"):
        run("Scale")
        until(lambda: len(settled()) == 2, "scaled", 120)
    with busy(report, "scale back to 3"):
        sh(f"{KUBECTL} scale deployment/app --replicas=3")
        until(lambda: len(settled()) == 3, "scaled", 120)


def test_rolling_restart_fails_no_request(client: str, report: Report) -> None:
    with busy(report, "rolling restart"):
        run("Restart the server")
        until(settled, "settled", 120)


def test_deleted_pod_fails_no_request(client: str, report: Report) -> None:
    name = min(settled())
    with busy(report, "a pod is deleted"):
        sh(f"{KUBECTL} delete pod {name}")
        until(settled, "settled", 120)


def test_update_with_a_wrong_tag_fails_no_request(client: str, report: Report) -> None:
    with busy(report, "update with a wrong tag"):
        with pytest.raises(AssertionError, match="exceeded its progress deadline"):
            run("Update", first="export TAG=no-such-tag")
        assert "account50@example.com" in page()


def test_next_update_mends_a_wrong_tag(client: str, report: Report) -> None:
    with busy(report, "update after a wrong tag"):
        run("Update")
        wait_for_seeder()
        until(settled, "settled", 120)


def test_second_update_in_a_row_fails_no_request(client: str, report: Report) -> None:
    """Kubernetes cannot change a Job, so the second update must delete the first one's Job."""
    change_job = 's/SEED_WAIT, value: "300"/SEED_WAIT, value: "299"/'
    change_app = 's/DRAIN, value: "5"/DRAIN, value: "6"/'
    with busy(report, "second update in a row"):
        update_with(f"{change_job}; {change_app}")
        wait_for_seeder()
        until(settled, "settled", 120)
    assert sh(f"{APP} printenv DRAIN") == "6\n"


def test_going_back_fails_no_request(client: str, report: Report) -> None:
    with busy(report, "going back"):
        run("Go back to the version before")
        until(settled, "settled", 120)
    assert sh(f"{APP} printenv DRAIN") == "5\n"


def test_changed_config_map_reaches_the_programs(client: str, report: Report) -> None:
    with busy(report, "changed ConfigMap"):
        update_with('s/DB_TLS: required/DB_TLS: required, DB_TIMEOUT: "3"/')
        run("Restart the server")
        wait_for_seeder()
        until(settled, "settled", 120)
    assert sh(f"{APP} printenv DB_TIMEOUT") == "3\n"


def test_check_finds_an_update_that_lost_the_database(client: str) -> None:
    """Kubernetes' readiness probe asks /health, so it does not notice."""
    assert run("Check the update") == "ready\n\n"
    sh(f"{KUBECTL} set env deployment/app DB_HOST=127.0.0.1")
    sh(f"{KUBECTL} rollout status deployment/app")
    until(settled, "settled", 120)
    with pytest.raises(AssertionError, match="HTTP Error 503"):
        run("Check the update")
    run("Go back to the version before")
    until(settled, "settled", 120)
    assert run("Check the update") == "ready\n\n"


def test_users_sh_refuses_to_rotate(client: str) -> None:
    """users.sh cannot replace the files of a Secret, so it changes nothing."""
    with pytest.raises(AssertionError, match="password cannot be replaced here"):
        sh(f"{DB} users.sh rotate")
    assert sh(f'{DB} as-root.sh mysql -Ne "{TWO_PASSWORDS}"') == "0\n"
    assert "account50@example.com" in page()


def test_rotation_fails_no_request(client: str, report: Report) -> None:
    before = settled()
    password = sh(f"{APP} cat /run/secrets/app/password")
    with busy(report, "rotation of the passwords"):
        run("Rotate the passwords")
    assert settled() == before
    assert sh(f"{APP} cat /run/secrets/app/password") != password
    assert sh(f'{DB} as-root.sh mysql -Ne "{TWO_PASSWORDS}"') == "0\n"
    sh(f"{DB} probe-db.sh")  # it logs in with the new password
    run("Update")
    wait_for_seeder()  # it has logged in with the new password


def test_evictions_take_one_pod_at_a_time(client: str, report: Report) -> None:
    refused = 0
    with busy(report, "three evictions"):
        for pod in settled():
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": "cct"},
            }
            path = f"/api/v1/namespaces/cct/pods/{pod}/eviction"
            answer = sh(f"kubectl create --raw {path} -f - 2>&1 || true", json.dumps(body))
            if "disruption budget" in answer:
                refused += 1
        until(settled, "settled", 120)
    assert refused == 2


def test_forwarded_port_comes_back_after_a_heal(client: str, report: Report) -> None:
    port = free_port()
    loop = DOCUMENT.commands("Forward a port").replace("5000:80", f"{port}:80")
    command = ["bash", "-c", f"({loop}) >/dev/null 2>&1"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until(lambda: get(port)[0] == 200, "forwarded")
        assert get(port, "/make-unhealthy")[0] == 200
        began = time.monotonic()
        until(lambda: '"healthy": true' in get(port, accept="application/json")[1], "back", 120)
        report(f"port-forward: back after {time.monotonic() - began:.1f} s")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_five_heals_of_one_pod_fail_no_request(client: str, report: Report) -> None:
    pods = until(settled, "settled", 120)
    pod = min(pods, key=pods.__getitem__)  # the one that was not healed yet
    for number in range(1, 6):
        with busy(report, f"heal {number} of one pod"):
            heal(pod)


@pytest.mark.parametrize("loss", ["exec db-0 -- sh -c 'kill -ABRT 1' || true", "delete pod db-0"])
def test_lost_database_restarts_no_server(client: str, report: Report, loss: str) -> None:
    before = settled()
    rows = run("Ask the database as root")
    began = time.monotonic()
    with subprocess.Popen(["bash", "-c", f"{KUBECTL} {loss}"], stdout=subprocess.DEVNULL):
        until(lambda: "The database does not answer." in page(), "lost")
        assert settled() == before
        until(lambda: "account50@example.com" in page(), "back", 120)
        report(f"{loss}: pages again after {time.monotonic() - began:.1f} s")
    sh(f"{KUBECTL} rollout status statefulset/db")
    assert settled() == before
    assert run("Ask the database as root") == rows


def test_logs_of_all_replicas_are_there(client: str) -> None:
    log = run("Read the log of all replicas")
    for pod in settled():
        assert f"[pod/{pod}/app]" in log


def test_pods_are_listed(client: str) -> None:
    """The document's command has --watch, and never ends."""
    command = DOCUMENT.commands("Watch the pods").replace(" --watch", "")
    assert "db-0" in sh(command)


def test_requests_fail_without_drain(client: str, report: Report) -> None:
    sh(f"{KUBECTL} set env deployment/app DRAIN=0")
    sh(f"{KUBECTL} rollout status deployment/app")
    until(settled, "settled", 120)
    with (
        pytest.raises(RequestsFailed),
        busy(report, "rolling restart with DRAIN=0"),
    ):
        run("Restart the server")


def test_removal_leaves_nothing(client: str) -> None:
    run("Remove everything")
    assert sh("kubectl get namespace cct --ignore-not-found") == ""


def test_every_command_of_the_document_was_run(client: str) -> None:
    assert DOCUMENT.unused() == set()
