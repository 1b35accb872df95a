"""docs/kubernetes.md on the cluster that kubectl reaches: `make cluster`, never a part of `make test`.

The tests tell one story, in their order, and run each command of the documentation.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests import client
from tests.conftest import Report
from tests.helpers import ROOT, free_port, get, until

pytestmark = pytest.mark.skipif(
    os.environ.get("CLUSTER") != "1", reason="needs a Kubernetes cluster: make cluster"
)

DOCS = (ROOT / "docs" / "kubernetes.md").read_text().replace("\\\n", "")
INSTALL, *OTHERS = re.findall(r"(?ms)^```sh\n(.*?)^```", DOCS)
FORWARD, *MOVES, REMOVE = "".join(OTHERS).splitlines()  # in the order of the documentation
[CHECKSUM] = [move for move in MOVES if "CHECKSUM" in move]
IMAGE = f"{os.environ.get('REGISTRY', '')}cct-app:{os.environ.get('TAG', 'latest')}"
KUBECTL = "kubectl --namespace cct"
STATUS, UNDO = (f"{KUBECTL} rollout {verb} deployment/app" for verb in ("status", "undo"))
CLIENT = "kubectl --namespace default exec --stdin cct-client --"
APP = f"{KUBECTL} exec --stdin deployment/app --"
load = partial(client.load, CLIENT.split(), "app.cct")


def sh(command: str, stdin: str = "") -> str:
    """Run a command line and return its output; AssertionError with its errors if it fails."""
    bash = ["bash", "-e", "-o", "pipefail", "-c", command]
    done = subprocess.run(
        bash, cwd=ROOT, input=stdin, check=False, capture_output=True, text=True, timeout=660
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def page() -> str:
    """Return what the client gets from the Service."""
    return sh(f"{CLIENT} python - app.cct /", client.GET)


def reaches(place: str, name: str) -> bool:
    """Return whether a pod can connect to a NAME/PORT."""
    return (
        sh(f"{place} timeout 3 bash -c '</dev/tcp/{name}' 2>/dev/null && echo yes || true")
        == "yes\n"
    )


def settled() -> dict[str, int]:
    """Return the pods of the app with their restarts, once there are as many as there should be, and all are ready."""
    replicas = int(sh(f"{KUBECTL} get deployment app --output jsonpath='{{.spec.replicas}}'"))
    pods = sh(f"{KUBECTL} get pods --selector app.kubernetes.io/name=app --no-headers").splitlines()
    ready = {
        name: int(restarts)
        for name, ready, _, restarts, *_ in map(str.split, pods)
        if ready == "1/1"
    }
    return ready if len(ready) == len(pods) == replicas else {}


@pytest.fixture(scope="module")
def pod() -> Iterator[None]:
    """Have a pod outside of the namespace; delete what the tests made."""
    if sh("kubectl get namespace cct --ignore-not-found"):
        pytest.exit("There is a namespace cct already. These tests would delete it.", returncode=1)
    try:
        sh(
            f"kubectl --namespace default run cct-client --image={IMAGE} --image-pull-policy=IfNotPresent -- sleep 3600"
        )
        sh("kubectl --namespace default wait --for=condition=Ready --timeout=5m pod/cct-client")
        yield
    finally:
        sh("kubectl --namespace default delete pod cct-client --now --ignore-not-found")
        sh("kubectl delete namespace cct --ignore-not-found")


def test_installation_ends_with_three_ready_pods_that_answer(pod: None, report: Report) -> None:
    began = time.monotonic()
    sh(INSTALL)
    assert len(settled()) == 3
    assert "account50@example.com" in page()
    report(f"installation: {time.monotonic() - began:.1f} s")


def test_rights_and_policies_hold() -> None:
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        sh(f"{KUBECTL} run plain --image={IMAGE}")
    assert reaches(CLIENT, "app.cct/80")
    assert reaches(CLIENT, "kubernetes.default/443")
    assert reaches(APP, "db.cct/3306")
    forbidden = [reaches(CLIENT, "db.cct/3306"), reaches(APP, "kubernetes.default/443")]
    if all(forbidden):
        pytest.skip("the network plugin of this cluster does not enforce NetworkPolicies")
    assert forbidden == [False, False]


@pytest.mark.parametrize(
    "move",
    [
        *MOVES,
        f"{KUBECTL} scale deployment/app --replicas=3",
        f"{KUBECTL} delete $({KUBECTL} get pods --output name | grep --max-count=1 /app-)",
        f"{KUBECTL} set env deployment/app DRAIN=soon; if {STATUS}; then exit 1; fi; {UNDO}",
    ],
)
def test_everyday_moves_fail_no_request(move: str, report: Report) -> None:
    with load(report, move):
        sh(f"{move.replace(' --watch', '')}; {STATUS}")
        until(settled, "settled", 120)


def test_evictions_take_one_pod_at_a_time_and_fail_no_request(report: Report) -> None:
    refused = 0
    with load(report, "three evictions"):
        for pod in settled():
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod, "namespace": "cct"},
            }
            command = (
                f"kubectl create --raw /api/v1/namespaces/cct/pods/{pod}/eviction -f - 2>&1 || true"
            )
            refused += "disruption budget" in sh(command, json.dumps(body))
        until(settled, "settled", 120)
    assert refused == 2


def test_forwarded_port_comes_back_after_a_heal(report: Report) -> None:
    port = free_port()
    loop = FORWARD.replace("5000:80", f"{port}:80")
    process = subprocess.Popen(["bash", "-c", f"({loop}) >/dev/null 2>&1"], start_new_session=True)
    try:
        until(lambda: get(port)[0] == 200, "forwarded")
        assert get(port, "/make-unhealthy")[0] == 200
        began = time.monotonic()
        until(lambda: '"healthy": true' in get(port, accept="application/json")[1], "back", 120)
        report(f"port-forward: back after {time.monotonic() - began:.1f} s")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_five_heals_of_one_pod_fail_no_request(report: Report) -> None:
    pods = until(settled, "settled")
    pod = min(pods, key=pods.__getitem__)  # the one that was not healed yet
    for restarts in range(1, 6):
        with load(report, f"heal {restarts} of one pod"):
            sh(
                f"{KUBECTL} exec --stdin {pod} -- python - 127.0.0.1:8080 /make-unhealthy",
                client.GET,
            )
            until(lambda: settled().get(pod) == restarts, "healed", 180)  # noqa: B023


@pytest.mark.parametrize("loss", ["exec db-0 -- sh -c 'kill -ABRT 1' || true", "delete pod db-0"])
def test_lost_database_takes_no_pod_of_the_app_away(loss: str, report: Report) -> None:
    before, rows, began = settled(), sh(CHECKSUM), time.monotonic()
    with subprocess.Popen(["bash", "-c", f"{KUBECTL} {loss}"], stdout=subprocess.DEVNULL):
        until(lambda: "The database does not answer." in page(), "lost")
        assert settled() == before
        until(lambda: "account50@example.com" in page(), "back", 120)
        report(f"{loss}: pages again after {time.monotonic() - began:.1f} s")
    sh(f"{KUBECTL} rollout status statefulset/db")
    assert (settled(), sh(CHECKSUM)) == (before, rows)


def test_load_sees_what_a_restart_without_drain_loses(report: Report) -> None:
    sh(f"{KUBECTL} set env deployment/app DRAIN=0; {STATUS}")
    until(settled, "settled")
    with (
        pytest.raises(AssertionError, match="requests failed"),
        load(report, "rolling restart with DRAIN=0"),
    ):
        sh(f"{KUBECTL} rollout restart deployment/app; {STATUS}")


def test_removal_leaves_nothing() -> None:
    sh(REMOVE)
    assert sh("kubectl get namespace cct --ignore-not-found") == ""
