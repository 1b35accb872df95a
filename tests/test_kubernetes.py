"""deploy/kubernetes.yml as far as no cluster is needed: it fits the other files, and its containers work in an engine.

test_cluster.py shows the rest.
"""

import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from settings import Settings
from tests.docker import Stack, docker, require_engine
from tests.helpers import ROOT, get, until

Object = dict[str, Any]

FILE = ROOT / "deploy" / "kubernetes.yml"
DOCS = (ROOT / "docs" / "kubernetes.md").read_text()
DEFAULTS = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
COMPOSE: Object = yaml.safe_load(DEFAULTS.replace("${COMPOSE_PROJECT_NAME}", "cct"))["services"]

NAME = "app.kubernetes.io/name"
OBJECTS: list[Object] = list(yaml.safe_load_all(FILE.read_text()))
SPECS: dict[tuple[str, str], Object] = {(o["kind"], o["metadata"]["name"]): o.get("spec", {}) for o in OBJECTS}
PODS: dict[str, Object] = {name: spec["template"]["spec"] for (_, name), spec in SPECS.items() if "template" in spec}
CONTAINERS: dict[str, Object] = {name: pod["containers"][0] for name, pod in PODS.items()}
[DATABASE] = [o["data"] for o in OBJECTS if o["kind"] == "ConfigMap"]
VERSIONS = sorted({version for version in all_versions() if int(version.split(".")[1]) >= 30})
NO_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
DNS = {("anybody", "UDP 53"), ("anybody", "TCP 53")}
USER = "10001"  # of both images: the kubelet cannot tell from a name that it is not root's


def env(pod: str) -> dict[str, str]:
    """Return the environment of a pod's container."""
    variables = {variable["name"]: variable["value"] for variable in CONTAINERS[pod]["env"]}
    return DATABASE | variables if "envFrom" in CONTAINERS[pod] else variables


def settings(environment: Object) -> Settings:
    """Return the settings that a program would read, but for the file of its password, which is not here."""
    texts = {name: str(value) for name, value in environment.items()}
    return Settings.read(texts | {"DB_PASSWORD_FILE": "", "DB_PASSWORD": "x"})


def selected(selector: Object) -> set[str]:
    """Return the pods that a selector means: plain labels, matchLabels or matchExpressions."""
    if "matchExpressions" in selector:
        [names] = [e["values"] for e in selector["matchExpressions"] if (e["key"], e["operator"]) == (NAME, "In")]
        return set(names)
    labels = selector.get("matchLabels", selector)
    return {pod for pod in PODS if labels.items() <= {(NAME, pod)}}


@pytest.mark.parametrize("version", VERSIONS)
def test_file_is_valid_in_each_version_of_kubernetes(version: str) -> None:
    for o in OBJECTS:
        kubernetes_validate.validate(o, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="unexpected"):
        kubernetes_validate.validate(OBJECTS[0] | {"unknown": 1}, version, strict=True)
    [oldest] = re.findall(r"Kubernetes (\d\.\d+) or newer", FILE.read_text())
    assert VERSIONS[0].startswith(oldest)


# ---------------------------------------------------------------- of a piece with the other files


@pytest.mark.parametrize("pod", PODS)
def test_images_and_memory_are_those_of_compose(pod: str) -> None:
    assert CONTAINERS[pod]["image"] == COMPOSE[pod]["image"]
    assert pod == "db" or CONTAINERS[pod]["imagePullPolicy"] == "IfNotPresent"  # a node may have been given it
    assert CONTAINERS[pod]["resources"]["limits"]["memory"].removesuffix("i").lower() == COMPOSE[pod]["mem_limit"]


@pytest.mark.parametrize(("pod", "own"), [("seeder", {"seed_wait"}), ("app", {"allowed_hosts", "drain", "port"})])
def test_settings_are_those_of_compose_but_for_what_a_cluster_needs(pod: str, own: set[str]) -> None:
    here, there = settings(env(pod)), settings(COMPOSE[pod]["environment"])
    assert here == replace(there, **{name: getattr(here, name) for name in own})
    assert env(pod).keys() <= {field.name.upper() for field in fields(Settings)}
    assert PODS[pod]["enableServiceLinks"] is False  # they set DB_PORT=tcp://...
    assert env("db") == COMPOSE["db"]["environment"]


def test_ports_are_those_of_the_settings() -> None:
    server = settings(env("app"))
    [outer], [inner] = SPECS["Service", "app"]["ports"], CONTAINERS["app"]["ports"]
    assert (outer["port"], outer["targetPort"], inner["containerPort"]) == (80, inner["name"], server.port)
    [outer], [inner] = SPECS["Service", server.db_host]["ports"], CONTAINERS["db"]["ports"]
    assert outer["port"] == inner["containerPort"] == server.db_port


def test_selectors_mean_the_pods_that_they_are_named_after() -> None:
    for (kind, name), spec in SPECS.items():
        if kind in ("Service", "StatefulSet", "Deployment", "PodDisruptionBudget"):
            assert selected(spec["selector"]) == {name}
        assert "template" not in spec or spec["template"]["metadata"]["labels"] == {NAME: name}
    assert selected(PODS["app"]["topologySpreadConstraints"][0]["labelSelector"]) == {"app"}


def test_documentation_makes_the_secret() -> None:
    volumes = [volume["secret"] for pod in PODS.values() for volume in pod["volumes"] if "secret" in volume]
    assert {volume["secretName"] for volume in volumes} == set(re.findall(r"create secret generic (\w+)", DOCS))
    keys = {item["key"] for volume in volumes for item in volume["items"]}
    assert keys == set(re.findall(r"--from-file=([\w.]+)", DOCS))


# ---------------------------------------------------------------- rights, reach, times


@pytest.mark.parametrize("pod", PODS)
def test_pods_have_few_rights_and_limits(pod: str) -> None:
    spec, own = PODS[pod], CONTAINERS[pod]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"] == NO_RIGHTS
    assert spec["containers"] == [own]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
    assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir", "secret"}
    assert own["resources"]["requests"].keys() == {"cpu", "memory"}


def test_everything_stands_in_the_namespace_that_enforces_the_restricted_standard() -> None:
    assert OBJECTS[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {o["metadata"]["namespace"] for o in OBJECTS[1:]} == {OBJECTS[0]["metadata"]["name"]}
    users = re.findall(r"^USER (\d+):(\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users == [(USER, USER)] * 2


def reach(objects: list[Object], direction: str, pod: str) -> set[tuple[str, str | int]]:
    """Return which peers and ports the policies open to a pod; a peer is a pod, an address, or "anybody"."""
    found: set[tuple[str, str | int]] = set()
    for o in objects:
        if o["kind"] == "NetworkPolicy" and pod in selected(o["spec"]["podSelector"]):
            for rule in o["spec"].get(direction, []):
                peers: set[str] = set()
                for peer in rule.get("from" if direction == "ingress" else "to", []):
                    peers |= selected(peer["podSelector"]) if "podSelector" in peer else {peer["ipBlock"]["cidr"]}
                found |= set(product(peers or {"anybody"}, (f"{p['protocol']} {p['port']}" for p in rule["ports"])))
    return found


def test_policies_open_db_to_seeder_and_app_alone_and_app_to_everybody() -> None:
    mysql = f"TCP {DATABASE['DB_PORT']}"
    assert SPECS["NetworkPolicy", "default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert reach(OBJECTS, "ingress", "db") == {("seeder", mysql), ("app", mysql)}
    assert reach(OBJECTS, "ingress", "app") == {("anybody", "TCP http")}
    assert reach(OBJECTS, "ingress", "seeder") == reach(OBJECTS, "egress", "db") == set()
    assert reach(OBJECTS, "egress", "seeder") == reach(OBJECTS, "egress", "app") == {("db", mysql), *DNS}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_documented_kustomization_leads_to_another_database(tmp_path: Path) -> None:
    kustomization = DOCS.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "kustomization.yml").write_text(kustomization)
    shutil.copytree(FILE.parent, tmp_path / "deploy")
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, check=True, text=True)
    objects = list(yaml.safe_load_all(done.stdout))
    for o in objects:
        kubernetes_validate.validate(o, VERSIONS[-1], strict=True)
    assert {o["metadata"]["name"] for o in objects} == {o["metadata"]["name"] for o in OBJECTS} - {"db"}
    [database] = [o["data"] for o in objects if o["kind"] == "ConfigMap"]
    other = settings(env("app") | database)
    assert (other.db_host, other.db_port, other.db_tls) == ("mysql.example.com", 3307, "verify-identity")
    found = {("203.0.113.7/32", "TCP 3307"), *DNS}
    assert reach(objects, "egress", "seeder") == reach(objects, "egress", "app") == found


def test_unhealthy_pod_leaves_the_service_before_its_restart_and_an_outage_of_the_database_takes_none_away() -> None:
    probes = [CONTAINERS["app"][f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    assert [probe["httpGet"]["path"] for probe in probes] == ["/health"] * 3
    assert 3 * probes[1]["periodSeconds"] < 2 * probes[2]["periodSeconds"]  # each may fail three times: the default


def test_update_spares_all_pods_and_an_emptied_node_two_of_three() -> None:
    app = SPECS["Deployment", "app"]
    assert app["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert app["progressDeadlineSeconds"] <= 120
    assert (app["replicas"], SPECS["PodDisruptionBudget", "app"]["maxUnavailable"]) == (3, 1)


def test_each_has_the_time_that_it_needs() -> None:
    [timeout] = re.findall(r"shutdown_timeout=([\d.]+)", (ROOT / "server.py").read_text())
    stop = settings(env("app")).drain + 2 * float(timeout)  # aiohttp spends it twice at worst
    assert PODS["app"]["terminationGracePeriodSeconds"] > stop
    startup = CONTAINERS["db"]["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 24 * 60 * 60  # a recovery takes what it takes
    assert settings(env("seeder")).seed_wait >= 300
    assert SPECS["Job", "seeder"]["ttlSecondsAfterFinished"] > 0


# ---------------------------------------------------------------- the containers, in an engine


def as_service(pod: str, port: int) -> Object:
    """Return a pod as a service of Compose, with what the kubelet gives it; the keys of the Secret are files there."""
    spec, own = PODS[pod], CONTAINERS[pod]
    context = spec["securityContext"] | own["securityContext"]
    items = {volume["name"]: volume["secret"]["items"] for volume in spec["volumes"] if "secret" in volume}
    volumes = []
    for mount in own["volumeMounts"]:
        name, path = mount["name"], mount["mountPath"]
        files = [f"./{item['key']}:{path}/{item['path']}:ro" for item in items.get(name, [])]
        volumes += files or [f"{name}:{path}:nocopy"]
    return {
        **({"image": own["image"]} if pod == "db" else {"build": {"context": ".", "target": pod}}),
        "environment": env(pod),
        "user": f"{context.get('runAsUser', USER)}:{context.get('runAsGroup', USER)}",
        "group_add": [context.get("fsGroup", USER)],
        "read_only": context["readOnlyRootFilesystem"],
        "cap_drop": context["capabilities"]["drop"],
        "security_opt": ["no-new-privileges:true"],
        "sysctls": {sysctl["name"]: sysctl["value"] for sysctl in context.get("sysctls", [])},
        "mem_limit": COMPOSE[pod]["mem_limit"],
        "ports": [f"127.0.0.1:{port}:{own['ports'][0]['containerPort']}"] if pod == "app" else [],
        "volumes": volumes,
    }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the pods after their first start, through which the seeder waited for the database."""
    require_engine()
    stack = Stack(tmp_path_factory.mktemp("kubernetes") / "cct")
    services = {pod: as_service(pod, stack.port) for pod in PODS}
    file = {"services": services, "volumes": {"data": {}, "run": {}, "tmp": {}}}
    (stack.folder / "docker-compose.yml").write_text(json.dumps(file))
    for key in re.findall(r"--from-file=(\w+)=", DOCS):
        (stack.folder / key).write_text(secrets.token_hex(24))
    group = PODS["db"]["securityContext"]["fsGroup"]  # of a new disk
    disk = f"chmod 777 /tmp /var/run/mysqld; cd /var/lib/mysql; mkdir -m 700 lost+found; chgrp {group} .; chmod 2775 ."
    try:
        stack.compose("run", "--rm", "--user=0", "--cap-add=CHOWN", "--entrypoint=sh", "db", "-ec", disk)
        stack.compose("up", "--detach", "--build", "seeder", "app")
        stack.compose("up", "--detach", "db")
        wait(stack, "db", "startup")
        wait(stack, "app", "startup")
        assert docker("wait", stack.container("seeder")) == "0\n"
        assert "inserted 100 accounts" in docker("logs", stack.container("seeder"))
        yield stack
    finally:
        stack.down()


def passes(stack: Stack, pod: str, kind: str) -> bool:
    """Execute a probe once, as the kubelet would."""
    probe = CONTAINERS[pod][f"{kind}Probe"]
    timeout = probe.get("timeoutSeconds", 1)
    if "httpGet" in probe:
        return get(stack.port, probe["httpGet"]["path"], timeout, user_agent="kube-probe/1.30")[0] == 200
    command = ["docker", "exec", stack.container(pod), *probe["exec"]["command"]]
    try:
        return subprocess.run(command, check=False, capture_output=True, timeout=timeout).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def wait(stack: Stack, pod: str, kind: str) -> None:
    """Wait until a probe passes."""
    until(lambda: passes(stack, pod, kind), f"passing: {kind} probe of {pod}", 300)


def test_every_probe_passes_the_page_is_answered_and_the_seeder_may_run_again(stack: Stack) -> None:
    assert all(passes(stack, pod, kind) for pod in ("db", "app") for kind in ("startup", "readiness", "liveness"))
    assert len(stack.page()["accounts"]) == 50
    assert "nothing to do" in stack.compose("run", "--rm", "seeder")


def test_idle_connection_to_the_database_sends_signs_of_life(stack: Stack) -> None:
    stack.page()
    mysql = f"{int(DATABASE['DB_PORT']):04X}"
    sockets = [line.split() for line in stack.exec("app", "cat", "/proc/net/tcp").splitlines()]
    timers = [timer.split(":") for _, _, peer, _, _, timer, *_ in sockets if peer.endswith(f":{mysql}")]
    assert timers
    assert all(kind == "02" and int(hundredths, 16) <= 300_00 for kind, hundredths in timers)  # 02: keepalive


def test_database_that_refuses_is_not_ready_but_alive_and_one_that_hangs_is_not(stack: Stack) -> None:
    stack.sql("ALTER USER app ACCOUNT LOCK")
    assert not passes(stack, "db", "readiness")
    assert passes(stack, "db", "liveness")
    stack.sql("ALTER USER app ACCOUNT UNLOCK")
    stack.compose("kill", "--signal=STOP", "db")
    assert not passes(stack, "db", "liveness")
    stack.compose("kill", "--signal=CONT", "db")
    wait(stack, "db", "liveness")


def test_killed_database_takes_no_app_away_and_recovers_with_what_it_had(stack: Stack) -> None:
    before = stack.page()["accounts"]
    stack.compose("kill", "db")
    until(lambda: "The database does not answer." in stack.get()[1], "said")
    assert passes(stack, "app", "readiness")
    assert passes(stack, "app", "liveness")
    stack.compose("start", "db")
    until(lambda: stack.get()[0] == 200, "answered")
    assert stack.page()["accounts"] == before


def test_unhealthy_server_fails_its_probes_until_it_is_restarted(stack: Stack) -> None:
    stack.get("/make-unhealthy")
    assert not passes(stack, "app", "liveness")
    assert not passes(stack, "app", "readiness")
    stack.compose("restart", "app")
    for kind in ("startup", "readiness", "liveness"):
        wait(stack, "app", kind)


def test_server_that_stops_serves_on_and_ends_within_its_grace(stack: Stack) -> None:
    began = time.monotonic()
    stack.compose("kill", "--signal=TERM", "app")
    until(lambda: stack.get("/ready") == (503, "stopping\n"), "stopping")
    assert stack.page()["accounts"]
    assert passes(stack, "app", "liveness")
    assert docker("wait", stack.container("app")) == "0\n"
    grace = PODS["app"]["terminationGracePeriodSeconds"]
    assert settings(env("app")).drain <= time.monotonic() - began < grace
