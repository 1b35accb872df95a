"""docs/kubernetes.md on the cluster of kubectl: `make cluster`. `make test` skips this file.

The tests run the commands of the document, in order. Each test needs the tests before it.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conftest import Report
from tests.documents import Document
from tests.platforms.load import GET, Outcome, RequestsFailed, load
from tests.shell import run_command
from tools import ROOT
from tools.waiting import free_port, get, until

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER") != "1", reason="needs a Kubernetes cluster: make cluster"
)

DOCUMENT = Document("docs/kubernetes.md", "sh")
COPY = Path("deploy/kubernetes")  # in the working directory of the tests
FOLDER = ROOT / COPY
KUBECTL = "kubectl --namespace cct"
CLIENT = "kubectl --namespace default exec --stdin cct-client --"
APP = f"{KUBECTL} exec --stdin deployment/app --"
DB = f"{KUBECTL} exec db-0 --"
APP_PODS = "--selector app.kubernetes.io/name=app"
TWO_PASSWORDS = "SELECT COUNT(*) FROM mysql.user WHERE User_attributes LIKE '%additional_pass%'"


def sh(commands: str, stdin: str = "") -> str:
    """Run commands in bash, and return their output; raise AssertionError if one fails."""
    options = ("-e", "-o", "pipefail", "-c", commands)
    return run_command("bash", *options, cwd=Path.cwd(), stdin=stdin)


def run(*names: str) -> str:
    """Run commands of the document in one shell."""
    return sh("\n".join(DOCUMENT.commands(name) for name in names))


def change(file: str, old: str, new: str) -> None:
    """Change a file of the folder, as a user does. `old` is a regular expression."""
    text, count = re.subn(old, new, (COPY / file).read_text())
    assert count == 1, old
    (COPY / file).write_text(text)


def write_wrong_tag(name: str) -> None:
    """Give the image of db or app a tag that does not exist."""
    change("kustomization.yml", rf"(name: cct-{name}, .*newTag:) [\w.-]+", r"\1 no-such-tag")


def correct_the_file() -> None:
    """Undo all changes of kustomization.yml."""
    shutil.copy(FOLDER / "kustomization.yml", COPY)


def image_of_the_app() -> str:
    """Return the image of app, as kustomization.yml names it."""
    text = (FOLDER / "kustomization.yml").read_text()
    found = re.search(r"name: cct-app, newName: (\S+), newTag: ([\w.-]+)", text)
    assert found
    return f"{found[1]}:{found[2]}"


def page() -> str:
    """Return the page that the client gets from the Service."""
    return sh(f"{CLIENT} python - app.cct /", GET)


def reaches(place: str, address: str) -> bool:
    """Return whether a pod can connect to HOST/PORT."""
    command = f"timeout 3 bash -c '</dev/tcp/{address}' 2>/dev/null && echo yes || true"
    return sh(f"{place} {command}") == "yes\n"


def ready_pods() -> dict[str, int]:
    """Return the number of restarts of each pod of the app; empty unless all pods are ready."""
    replicas = int(sh(f"{KUBECTL} get deployment app --output jsonpath='{{.spec.replicas}}'"))
    restarts = {}
    for line in sh(f"{KUBECTL} get pods {APP_PODS} --no-headers").splitlines():
        name, ready, _, count, *_ = line.split()
        if ready != "1/1":
            return {}
        restarts[name] = int(count)
    return restarts if len(restarts) == replicas else {}


def settle() -> dict[str, int]:
    """Wait until all pods of the app stay ready; return the number of restarts of each.

    A healed pod is ready, a second later unready, and then ready again: until its startup probe
    has looked, the kubelet trusts the result of the old container.
    """

    def stay_ready() -> dict[str, int]:
        before = ready_pods()
        time.sleep(3)
        return before if ready_pods() == before else {}

    return until(stay_ready, "settled", 180)


def heal(pod: str, restarts: int) -> None:
    """Press the button of a pod that has restarted so often; wait until the pod is healed."""
    sh(f"{KUBECTL} exec --stdin {pod} -- python - 127.0.0.1:8080 /make-unhealthy", GET)
    until(lambda: ready_pods().get(pod) == restarts + 1, "healed", 180)


def busy(report: Report, event: str) -> AbstractContextManager[Outcome]:
    """Keep the app busy until the end of the context; raise AssertionError if a request fails."""
    return load(CLIENT.split(), "app.cct", report, event)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the client, a pod in another namespace; yield the pod's address.

    The pod also serves on port 8080. The tests work in a copy of the folder. At the end, delete
    everything that the tests made.
    """
    if sh("kubectl get namespace cct --ignore-not-found"):
        pytest.exit("There is a namespace cct already. These tests would delete it.", returncode=1)
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(FOLDER, repository / COPY)
    default = "kubectl --namespace default"
    options = f"--image={image_of_the_app()} --image-pull-policy=IfNotPresent"
    try:
        sh(f"{default} run cct-client {options} -- python -m http.server 8080")
        sh(f"{default} wait --for=condition=Ready --timeout=5m pod/cct-client")
        with contextlib.chdir(repository):
            yield sh(f"{default} get pod cct-client --output jsonpath='{{.status.podIP}}'")
    finally:
        sh(f"{default} delete pod cct-client --now --ignore-not-found")
        sh("kubectl delete namespace cct --ignore-not-found")


def test_installation_ends_with_pages(client: str, report: Report) -> None:
    began = time.monotonic()
    run("Apply the folder", "Fill the table")
    until(ready_pods, "ready")
    assert "account50@example.com" in page()
    report(f"installation: {time.monotonic() - began:.1f} s")


def test_server_has_few_rights(client: str) -> None:
    """It sees its own password alone, and no token of Kubernetes. It cannot write."""
    assert sh(f"{APP} ls /run/secrets") == "app\n"
    with pytest.raises(AssertionError, match="Read-only file system"):
        sh(f"{APP} touch /x")


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
        until(lambda: len(ready_pods()) == 2, "scaled", 120)
    with busy(report, "scale back to 3"):
        run("Update")
        until(lambda: len(ready_pods()) == 3, "scaled", 120)


def test_rolling_restart_fails_no_request(client: str, report: Report) -> None:
    with busy(report, "rolling restart"):
        run("Restart the server")
        until(ready_pods, "ready")


def test_wrong_tag_of_the_app_fails_the_update_and_no_request(client: str, report: Report) -> None:
    change("app.yml", "progressDeadlineSeconds: 120", "progressDeadlineSeconds: 20")
    write_wrong_tag("app")
    with busy(report, "update with a wrong tag, and the next one"):
        with pytest.raises(AssertionError, match="exceeded its progress deadline"):
            run("Update")
        assert "account50@example.com" in page()
        correct_the_file()
        run("Update")
        until(ready_pods, "ready")


def test_wrong_tag_of_the_database_fails_the_update(client: str) -> None:
    rows = run("Ask the database as root")
    write_wrong_tag("db")
    update = DOCUMENT.commands("Update").replace("--timeout=2m", "--timeout=20s")
    with pytest.raises(AssertionError, match="timed out") as failure:
        sh(update)
    assert "successfully rolled out" not in str(failure.value)
    assert "The database does not answer." in page()
    correct_the_file()
    run("Update")
    assert run("Ask the database as root") == rows
    until(lambda: "account50@example.com" in page(), "back")


def test_changed_setting_reaches_the_pods_and_fails_no_request(client: str, report: Report) -> None:
    change("kustomization.yml", "DB_TLS=required", "DB_TLS=required, DB_TIMEOUT=3")
    assert "DB_TIMEOUT" in sh("kubectl diff -k deploy/kubernetes || test $? = 1")
    with busy(report, "changed setting"):
        run("Update")
        until(ready_pods, "ready")
    assert sh(f"{APP} printenv DB_TIMEOUT") == "3\n"
    run("Fill the table")  # the Job has the changed setting, too
    assert run("See what applying the folder would change") == ""


def test_check_finds_an_update_that_lost_the_database(client: str) -> None:
    """Kubernetes' readiness probe asks /health, so it does not notice."""
    assert run("Check the update") == "ready\n"
    change("kustomization.yml", "DB_HOST=db", "DB_HOST=127.0.0.1")
    run("Update")
    settle()
    with pytest.raises(AssertionError, match="unable to handle the request"):
        run("Check the update")
    correct_the_file()
    run("Update")
    settle()
    assert run("Check the update") == "ready\n"


def test_users_sh_refuses_to_rotate(client: str) -> None:
    """users.sh cannot replace the files of a Secret, so it changes nothing."""
    with pytest.raises(AssertionError, match="password cannot be replaced here"):
        sh(f"{DB} users.sh rotate")
    assert sh(f'{DB} as-root.sh mysql -Ne "{TWO_PASSWORDS}"') == "0\n"
    assert "account50@example.com" in page()


def test_rotation_fails_no_request(client: str, report: Report) -> None:
    password = sh(f"{APP} cat /run/secrets/app/password")
    with busy(report, "rotation of the passwords"):
        run("Rotate the passwords", "End the old passwords")
        settle()
    assert sh(f"{APP} cat /run/secrets/app/password") != password
    assert sh(f'{DB} as-root.sh mysql -Ne "{TWO_PASSWORDS}"') == "0\n"
    run("Fill the table")  # the seeder logs in with its new password


def test_evictions_take_one_pod_at_a_time(client: str, report: Report) -> None:
    refused = 0
    with busy(report, "three evictions"):
        for pod in settle():
            metadata = {"name": pod, "namespace": "cct"}
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
            path = f"/api/v1/namespaces/cct/pods/{pod}/eviction"
            answer = sh(f"kubectl create --raw {path} -f - 2>&1 || true", json.dumps(body))
            if "disruption budget" in answer:
                refused += 1
        until(ready_pods, "ready", 120)
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
        until(lambda: get(port, "/health")[0] == 200, "back", 120)
        report(f"port-forward: back after {time.monotonic() - began:.1f} s")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_five_heals_of_one_pod_fail_no_request(client: str, report: Report) -> None:
    pods = settle()
    pod = min(pods, key=pods.__getitem__)  # the one that was not healed yet
    for number in range(1, 6):
        restarts = settle()[pod]
        with busy(report, f"heal {number} of one pod"):
            heal(pod, restarts)


@pytest.mark.parametrize("loss", ["exec db-0 -- sh -c 'kill -ABRT 1' || true", "delete pod db-0"])
def test_lost_database_restarts_no_server(client: str, report: Report, loss: str) -> None:
    before = settle()
    rows = run("Ask the database as root")
    began = time.monotonic()
    with subprocess.Popen(["bash", "-c", f"{KUBECTL} {loss}"], stdout=subprocess.DEVNULL):
        until(lambda: "The database does not answer." in page(), "lost")
        until(lambda: "account50@example.com" in page(), "back", 120)
        report(f"{loss}: pages again after {time.monotonic() - began:.1f} s")
    sh(f"{KUBECTL} rollout status statefulset/db")
    assert ready_pods() == before
    assert run("Ask the database as root") == rows


def test_list_and_log_have_each_replica(client: str) -> None:
    """The document's command for the list has --watch, and never ends."""
    pods = sh(DOCUMENT.commands("Watch the pods").replace(" --watch", ""))
    log = run("Read the log of all replicas")
    for pod in settle():
        assert pod in pods
        assert f"[pod/{pod}/app]" in log


def test_service_of_an_earlier_version_gets_an_address(client: str) -> None:
    """`kubectl apply` alone leaves a Service as it is that has no address."""
    rows = run("Ask the database as root")
    sh(f"{KUBECTL} delete service db")
    sh(f"{KUBECTL} create service clusterip db --clusterip=None --tcp=3306 --save-config")
    run("Update")
    address = f"{KUBECTL} get service db --output jsonpath='{{.spec.clusterIP}}'"
    assert sh(address) == "None"
    run("Come from an earlier version", "Update")
    assert sh(address) != "None"
    assert run("Ask the database as root") == rows


def test_requests_fail_without_drain(client: str, report: Report) -> None:
    change("app.yml", 'DRAIN, value: "5"', 'DRAIN, value: "0"')
    run("Update")
    settle()
    with pytest.raises(RequestsFailed), busy(report, "rolling restart with DRAIN=0"):
        run("Restart the server")


def test_removal_leaves_nothing(client: str) -> None:
    run("Remove everything")
    assert sh("kubectl get namespace cct --ignore-not-found") == ""


def test_every_command_of_the_document_was_run(client: str) -> None:
    assert DOCUMENT.unused() == set()
