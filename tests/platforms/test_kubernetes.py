"""deploy/kubernetes.yml as far as no cluster is needed: it fits the other files, and its containers work in an engine.

test_cluster.py shows the rest.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from settings import Settings
from tests.docker import Stack, docker
from tests.helpers import ROOT, get, until

Object = dict[str, Any]

FILE = ROOT / "deploy" / "kubernetes.yml"
DOCS = (ROOT / "docs" / "kubernetes.md").read_text()
SECRET_KEYS = re.findall(r"--from-file=([\w.]+)", DOCS)
DEFAULTS = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
COMPOSE: Object = yaml.safe_load(DEFAULTS.replace("${COMPOSE_PROJECT_NAME}", "cct"))["services"]

NAME = "app.kubernetes.io/name"
OBJECTS: list[Object] = list(yaml.safe_load_all(FILE.read_text()))
SPECS: dict[tuple[str, str], Object] = {
    (o["kind"], o["metadata"]["name"]): o.get("spec", {}) for o in OBJECTS
}
PODS: dict[str, Object] = {
    name: spec["template"]["spec"] for (_, name), spec in SPECS.items() if "template" in spec
}
CONTAINERS: dict[str, Object] = {name: pod["containers"][0] for name, pod in PODS.items()}
[DATABASE] = [o["data"] for o in OBJECTS if o["kind"] == "ConfigMap"]
VERSIONS = sorted(
    {
        version
        for version in kubernetes_validate.utils.all_versions()
        if int(version.split(".")[1]) >= 30
    }
)
NO_RIGHTS = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
USER = "10001"  # of both images: the kubelet cannot tell from a name that it is not root's


def env(pod: str) -> dict[str, str]:
    """Return the environment of a pod's container."""
    variables = {variable["name"]: variable["value"] for variable in CONTAINERS[pod]["env"]}
    return DATABASE | variables if "envFrom" in CONTAINERS[pod] else variables


def settings(environment: Object) -> Settings:
    """Return the settings that a program would read, but for the file of its password, which is not here."""
    texts = {name: str(value) for name, value in environment.items()}
    return Settings.read(texts | {"DB_PASSWORD_FILE": "", "DB_PASSWORD": "x"})


@pytest.mark.parametrize("version", VERSIONS)
def test_file_is_valid_in_each_version_of_kubernetes(version: str) -> None:
    for o in OBJECTS:
        kubernetes_validate.validate(o, version, strict=True)


def test_file_agrees_with_the_other_files() -> None:
    assert settings(env("seeder")) == replace(
        settings(COMPOSE["seeder"]["environment"]), seed_wait=300.0
    )
    server = settings(env("app"))
    assert server == replace(
        settings(COMPOSE["app"]["environment"]), allowed_hosts="*", drain=5.0, port=8080
    )
    assert {*env("seeder"), *env("app")} <= {field.name.upper() for field in fields(Settings)}
    assert env("db") == COMPOSE["db"]["environment"]
    assert SPECS["Service", server.db_host]["ports"] == [{"port": server.db_port}]
    assert CONTAINERS["db"]["ports"] == [{"containerPort": server.db_port}]
    assert SPECS["Service", "app"]["ports"] == [{"port": 80, "targetPort": "http"}]
    assert CONTAINERS["app"]["ports"] == [{"name": "http", "containerPort": server.port}]
    secrets = [
        volume["secret"] for pod in PODS.values() for volume in pod["volumes"] if "secret" in volume
    ]
    assert {secret["secretName"] for secret in secrets} == set(
        re.findall(r"create secret generic (\w+)", DOCS)
    )
    assert {item["key"] for secret in secrets for item in secret["items"]} == set(SECRET_KEYS)
    assert (
        re.findall(r"USER (\d+:\d+)", (ROOT / "Dockerfile").read_text()) == [f"{USER}:{USER}"] * 2
    )
    assert re.findall(r"Kubernetes (\d\.\d+) or newer", FILE.read_text()) == [
        VERSIONS[0].rpartition(".")[0]
    ]


def test_selectors_mean_the_pods_that_they_are_named_after_and_all_are_in_the_restricted_namespace() -> (
    None
):
    assert OBJECTS[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {o["metadata"]["namespace"] for o in OBJECTS[1:]} == {OBJECTS[0]["metadata"]["name"]}
    for (_, name), spec in SPECS.items():
        selector = spec.get("selector", {NAME: name})
        assert selector.get("matchLabels", selector) == {NAME: name}
        assert "template" not in spec or spec["template"]["metadata"]["labels"] == {NAME: name}
    assert PODS["app"]["topologySpreadConstraints"][0]["labelSelector"] == {
        "matchLabels": {NAME: "app"}
    }


@pytest.mark.parametrize("pod", PODS)
def test_pods_have_few_rights_and_limits(pod: str) -> None:
    spec = PODS[pod]
    [own] = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["securityContext"] == NO_RIGHTS
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
    assert {kind for volume in spec["volumes"] for kind in volume} <= {"name", "emptyDir", "secret"}
    assert own["image"] == COMPOSE[pod]["image"]
    assert (
        own["resources"]["limits"]["memory"].removesuffix("i").lower() == COMPOSE[pod]["mem_limit"]
    )
    assert own["resources"]["requests"].keys() == {"cpu", "memory"}
    assert pod == "db" or spec["enableServiceLinks"] is False  # they set DB_PORT=tcp://...
    assert pod == "db" or own["imagePullPolicy"] == "IfNotPresent"  # a node may have been given it


def test_policies_open_db_to_seeder_and_app_alone_and_app_to_everybody() -> None:
    db, seeder, app = ({"podSelector": {"matchLabels": {NAME: pod}}} for pod in PODS)
    clients = {
        "podSelector": {
            "matchExpressions": [{"key": NAME, "operator": "In", "values": ["seeder", "app"]}]
        }
    }
    mysql, http = (
        [{"port": port, "protocol": "TCP"}] for port in (int(DATABASE["DB_PORT"]), "http")
    )
    assert {name: spec for (kind, name), spec in SPECS.items() if kind == "NetworkPolicy"} == {
        "default-deny": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        "db": db
        | {"policyTypes": ["Ingress"], "ingress": [{"from": [seeder, app], "ports": mysql}]},
        "app": app | {"policyTypes": ["Ingress"], "ingress": [{"ports": http}]},
        "clients-of-db": clients
        | {"policyTypes": ["Egress"], "egress": [{"to": [db], "ports": mysql}, DNS]},
    }


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_documented_kustomization_leads_to_another_database(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yml").write_text(DOCS.partition("```yaml\n")[2].partition("```")[0])
    shutil.copytree(FILE.parent, tmp_path / "deploy")
    done = subprocess.run(
        ["kubectl", "kustomize", tmp_path], capture_output=True, check=True, text=True
    )
    objects = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(done.stdout)}
    for o in objects.values():
        kubernetes_validate.validate(o, VERSIONS[-1], strict=True)
    assert objects.keys() == {key for key in SPECS if key[1] != "db"}
    other = settings(env("app") | objects["ConfigMap", "database"]["data"])
    assert (other.db_host, other.db_port, other.db_tls) == (
        "mysql.example.com",
        3307,
        "verify-identity",
    )
    allowed = {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"port": 3307, "protocol": "TCP"}],
    }
    assert objects["NetworkPolicy", "clients-of-db"]["spec"]["egress"] == [allowed, DNS]


def test_heals_and_updates_spare_the_other_pods_and_each_has_the_time_that_it_needs() -> None:
    probes = [CONTAINERS["app"][f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
    assert [probe["httpGet"]["path"] for probe in probes] == ["/health"] * 3
    assert (
        3 * probes[1]["periodSeconds"] < 2 * probes[2]["periodSeconds"]
    )  # each may fail three times: the default
    app = SPECS["Deployment", "app"]
    assert app["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert app["progressDeadlineSeconds"] <= 120
    assert (app["replicas"], SPECS["PodDisruptionBudget", "app"]["maxUnavailable"]) == (3, 1)
    [timeout] = re.findall(
        r"shutdown_timeout=([\d.]+)", (ROOT / "server.py").read_text()
    )  # spent twice at worst
    assert PODS["app"]["terminationGracePeriodSeconds"] > settings(env("app")).drain + 2 * float(
        timeout
    )
    startup = CONTAINERS["db"]["startupProbe"]
    assert (
        startup["periodSeconds"] * startup["failureThreshold"] >= 24 * 60 * 60
    )  # a recovery takes what it takes
    assert SPECS["Job", "seeder"]["ttlSecondsAfterFinished"] > 0


def as_service(pod: str, port: int) -> Object:
    """Return a pod as a service of Compose, confined alike, with the keys of the Secret as files."""
    own, context = CONTAINERS[pod], PODS[pod]["securityContext"]
    items = {
        volume["name"]: volume["secret"]["items"]
        for volume in PODS[pod]["volumes"]
        if "secret" in volume
    }
    volumes = []
    for mount in own["volumeMounts"]:
        name, path = mount["name"], mount["mountPath"]
        files = [f"./{item['key']}:{path}/{item['path']}:ro" for item in items.get(name, [])]
        volumes += files or [f"{name}:{path}:nocopy"]
    return {
        **({"image": own["image"]} if pod == "db" else {"build": {"context": ".", "target": pod}}),
        **{
            key: COMPOSE[pod][key] for key in ("cap_drop", "mem_limit", "read_only", "security_opt")
        },
        "environment": env(pod),
        "user": f"{context.get('runAsUser', USER)}:{context.get('runAsGroup', USER)}",
        "group_add": [context.get("fsGroup", USER)],
        "sysctls": {sysctl["name"]: sysctl["value"] for sysctl in context.get("sysctls", [])},
        "ports": [f"127.0.0.1:{port}:{own['ports'][0]['containerPort']}"] if pod == "app" else [],
        "volumes": volumes,
    }


def passes(stack: Stack, pod: str, kind: str) -> bool:
    """Execute a probe once, as the kubelet would."""
    probe = CONTAINERS[pod][f"{kind}Probe"]
    timeout = probe.get("timeoutSeconds", 1)
    if "httpGet" in probe:
        return (
            get(stack.port, probe["httpGet"]["path"], timeout, user_agent="kube-probe/1.30")[0]
            == 200
        )
    command = [
        "docker",
        "exec",
        stack.container(pod),
        "timeout",
        str(timeout),
        *probe["exec"]["command"],
    ]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the pods after their first start, through which the seeder waited for the database."""
    stack = Stack(tmp_path_factory.mktemp("kubernetes") / "cct")
    services = {pod: as_service(pod, stack.port) for pod in PODS}
    file = {"services": services, "volumes": {"data": {}, "run": {}, "tmp": {}}}
    (stack.folder / "docker-compose.yml").write_text(yaml.safe_dump(file))
    for key in {*SECRET_KEYS} - {"users.sh"}:
        (stack.folder / key).write_text(f"the password of {key}")
    group = PODS["db"]["securityContext"]["fsGroup"]  # of a new disk
    disk = f"chmod 777 /tmp /var/run/mysqld; cd /var/lib/mysql; mkdir -m 700 lost+found; chgrp {group} .; chmod 2775 ."
    try:
        stack.compose(
            "run", "--rm", "--user=0", "--cap-add=CHOWN", "--entrypoint=sh", "db", "-ec", disk
        )
        stack.compose("up", "--detach", "--build")
        assert docker("wait", stack.container("seeder")) == "0\n"
        until(lambda: passes(stack, "app", "startup"), "started")
        yield stack
    finally:
        stack.down()


def test_probes_pass_and_idle_connections_to_the_database_are_kept_alive(stack: Stack) -> None:
    assert all(
        passes(stack, pod, kind)
        for pod in ("db", "app")
        for kind in ("startup", "readiness", "liveness")
    )
    assert len(stack.page()["accounts"]) == 50
    sockets = [line.split() for line in stack.exec("app", "cat", "/proc/net/tcp").splitlines()]
    timers = [
        timer.split(":") for _, _, peer, _, _, timer, *_ in sockets if peer.endswith(":0CEA")
    ]  # 3306
    assert timers
    assert all(
        kind == "02" and int(hundredths, 16) <= 300_00 for kind, hundredths in timers
    )  # 02: keepalive


def test_database_that_refuses_is_alive_one_that_hangs_is_not_and_a_killed_one_recovers(
    stack: Stack,
) -> None:
    before = stack.page()["accounts"]
    stack.sql("ALTER USER app ACCOUNT LOCK")
    assert not passes(stack, "db", "readiness")
    assert passes(stack, "db", "liveness")
    stack.sql("ALTER USER app ACCOUNT UNLOCK")
    stack.compose("kill", "--signal=STOP", "db")
    assert not passes(stack, "db", "liveness")
    stack.compose("kill", "db")
    stack.compose("start", "db")
    until(lambda: stack.get()[0] == 200, "answered")
    assert stack.page()["accounts"] == before
