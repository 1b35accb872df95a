"""deploy/kubernetes.yml without a cluster: schemas, agreement with other files, rights, and db.

test_cluster.py tests the rest on a cluster.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from run import SHUTDOWN_TIMEOUT
from settings import Settings
from tests.platforms.document import Document
from tests.shell import run_command
from tests.stack import docker, require_engine
from tools import ROOT
from tools.waiting import free_port, get, until

Object = dict[str, Any]

FILE = ROOT / "deploy" / "kubernetes.yml"
DOCUMENT = Document("docs/kubernetes.md")
LABEL = "app.kubernetes.io/name"
PODS = ("db", "seeder", "app")
OLDEST = 30  # Kubernetes 1.30
VERSIONS = [
    version
    for version in sorted(kubernetes_validate.utils.all_versions())
    if int(version.split(".")[1]) >= OLDEST
]
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def read_objects(text: str) -> dict[tuple[str, str], Object]:
    """Return the objects of a file, by kind and name."""
    objects = {}
    for item in yaml.safe_load_all(text):
        objects[item["kind"], item["metadata"]["name"]] = item
    return objects


OBJECTS = read_objects(FILE.read_text())


def spec(kind: str, name: str) -> Object:
    """Return the specification of an object."""
    found: Object = OBJECTS[kind, name]["spec"]
    return found


def template(name: str) -> Object:
    """Return the pod template of db, seeder or app: labels and specification."""
    kinds = {"db": "StatefulSet", "seeder": "Job", "app": "Deployment"}
    found: Object = spec(kinds[name], name)["template"]
    return found


def pod(name: str) -> Object:
    """Return the specification in a pod template."""
    found: Object = template(name)["spec"]
    return found


def container(name: str) -> Object:
    """Return the only container of a pod."""
    [found] = pod(name)["containers"]
    return dict(found)


def environment(name: str) -> dict[str, str]:
    """Return the environment of a container."""
    variables: dict[str, str] = {}
    if "envFrom" in container(name):
        variables |= OBJECTS["ConfigMap", "database"]["data"]
    for variable in container(name)["env"]:
        variables[variable["name"]] = variable["value"]
    return variables


def settings(variables: Object) -> Object:
    """Return the settings of a program, with a fixed password instead of the password file."""
    texts = {name: str(value) for name, value in variables.items()}
    return vars(Settings(texts | {"DB_PASSWORD_FILE": "", "DB_PASSWORD": "x"}))


def compose_services() -> Object:
    """Return the services of docker-compose.yml, with the defaults of its variables."""
    text = (ROOT / "docker-compose.yml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    text = text.replace("${COMPOSE_PROJECT_NAME}", "cct")
    services: Object = yaml.safe_load(text)["services"]
    return services


COMPOSE = compose_services()


@pytest.mark.parametrize("version", VERSIONS)
def test_file_is_valid_in_each_version_of_kubernetes(version: str) -> None:
    for item in OBJECTS.values():
        kubernetes_validate.validate(item, version, strict=True)


def test_file_names_the_oldest_kubernetes() -> None:
    assert f"Kubernetes 1.{OLDEST} or newer" in FILE.read_text()
    assert VERSIONS[0].startswith(f"1.{OLDEST}.")


def test_programs_have_the_same_settings_as_under_compose() -> None:
    compose_seeder = settings(COMPOSE["seeder"]["environment"])
    compose_app = settings(COMPOSE["app"]["environment"])
    app = {"allowed_hosts": "*", "drain": 5.0, "port": 8080}
    assert settings(environment("seeder")) == compose_seeder | {"seed_wait": 300.0}
    assert settings(environment("app")) == compose_app | app
    assert environment("db") == COMPOSE["db"]["environment"]


def test_each_variable_is_a_setting() -> None:
    names = {name.upper() for name in settings(environment("app"))}
    assert environment("seeder").keys() <= names
    assert environment("app").keys() <= names


def test_ports_are_those_of_the_settings() -> None:
    app = settings(environment("app"))
    assert spec("Service", app["db_host"])["ports"] == [{"port": app["db_port"]}]
    assert container("db")["ports"] == [{"containerPort": app["db_port"]}]
    assert spec("Service", "app")["ports"] == [{"port": 80, "targetPort": "http"}]
    assert container("app")["ports"] == [{"name": "http", "containerPort": app["port"]}]


def test_secret_of_the_document_has_the_passwords_of_the_pods() -> None:
    commands = DOCUMENT.commands("Apply the file")
    assert "create secret generic users " in commands
    keys: set[str] = set()
    for name in PODS:
        for volume in pod(name)["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] == "users"
                keys.update(item["key"] for item in volume["secret"]["items"])
    assert keys == set(re.findall(r"--from-file=(\w+)=", commands))


def test_selectors_mean_the_pods_of_the_same_name() -> None:
    for name in PODS:
        assert template(name)["metadata"]["labels"] == {LABEL: name}
    for kind, name in (
        ("StatefulSet", "db"),
        ("Deployment", "app"),
        ("PodDisruptionBudget", "app"),
    ):
        assert spec(kind, name)["selector"] == {"matchLabels": {LABEL: name}}
    for name in ("db", "app"):
        assert spec("Service", name)["selector"] == {LABEL: name}
    [spread] = pod("app")["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": {LABEL: "app"}}


def test_all_objects_are_in_the_restricted_namespace() -> None:
    namespace = OBJECTS["Namespace", "cct"]["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for kind, name in OBJECTS.keys() - {("Namespace", "cct")}:
        assert OBJECTS[kind, name]["metadata"]["namespace"] == "cct"


@pytest.mark.parametrize("name", PODS)
def test_pods_have_few_rights(name: str) -> None:
    assert pod(name)["automountServiceAccountToken"] is False
    assert pod(name)["securityContext"]["runAsNonRoot"] is True
    assert pod(name)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert not pod(name).keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
    for volume in pod(name)["volumes"]:
        assert volume.keys() <= {"name", "emptyDir", "secret"}


@pytest.mark.parametrize("name", PODS)
def test_pods_have_the_memory_of_compose(name: str) -> None:
    resources = container(name)["resources"]
    memory = resources["limits"]["memory"].removesuffix("i").lower()
    assert memory == COMPOSE[name]["mem_limit"]
    assert resources["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("name", PODS)
def test_pods_run_the_images_of_compose(name: str) -> None:
    assert "build" in COMPOSE[name]
    assert container(name)["image"] == f"cct-{name}:latest"
    assert container(name)["imagePullPolicy"] == "IfNotPresent"  # kind loads it by hand
    assert pod(name)["enableServiceLinks"] is False  # else DB_PORT is a URL


def test_images_have_a_user_with_a_number() -> None:
    """The kubelet accepts only a number as a proof that the user is not root."""
    users = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users == ["10001:10001", "10001:10001"]  # seeder and app
    assert pod("db")["securityContext"]["runAsUser"] == 999


def test_policies_open_db_only_to_seeder_and_app() -> None:
    seeder = {"podSelector": {"matchLabels": {LABEL: "seeder"}}}
    app = {"podSelector": {"matchLabels": {LABEL: "app"}}}
    db = {"podSelector": {"matchLabels": {LABEL: "db"}}}
    mysql = [{"port": 3306, "protocol": "TCP"}]
    http = [{"port": "http", "protocol": "TCP"}]
    clients = [{"key": LABEL, "operator": "In", "values": ["seeder", "app"]}]
    policies = {name: spec(kind, name) for kind, name in OBJECTS if kind == "NetworkPolicy"}
    assert policies == {
        "default-deny": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
        "db": {
            **db,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [seeder, app], "ports": mysql}],
        },
        "app": {**app, "policyTypes": ["Ingress"], "ingress": [{"ports": http}]},
        "clients-of-db": {
            "podSelector": {"matchExpressions": clients},
            "policyTypes": ["Egress"],
            "egress": [{"to": [db], "ports": mysql}, DNS],
        },
    }


def test_pod_leaves_the_service_before_it_is_restarted() -> None:
    """Kubernetes acts on the third failure of a probe. Readiness must get there before liveness."""
    app = container("app")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert app[probe]["httpGet"]["path"] == "/health"
    unready = 3 * app["readinessProbe"]["periodSeconds"]
    earliest_restart = 2 * app["livenessProbe"]["periodSeconds"]
    assert unready < earliest_restart


def test_updates_spare_the_old_pods() -> None:
    app = spec("Deployment", "app")
    assert app["replicas"] == 3
    assert app["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert app["progressDeadlineSeconds"] <= 120
    assert spec("PodDisruptionBudget", "app")["maxUnavailable"] == 1


def test_server_has_the_time_that_a_stop_takes() -> None:
    stop = settings(environment("app"))["drain"] + 2 * SHUTDOWN_TIMEOUT
    assert pod("app")["terminationGracePeriodSeconds"] > stop


def test_database_has_a_day_to_start() -> None:
    probe = container("db")["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 24 * 60 * 60


def print_manifest(**variables: str) -> str:
    """Return the output of the document's function `manifest`."""
    script = DOCUMENT.commands("Name the images") + "manifest"
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return run_command("bash", "-ec", script, env=clean | variables)


def test_manifest_prints_the_file_with_other_images() -> None:
    text = print_manifest(REGISTRY="registry.example.com/", TAG="1.0.1", DB_TAG="1.0.0")
    assert re.findall("image: (.*)", text) == [
        "registry.example.com/cct-db:1.0.0",
        "registry.example.com/cct-seeder:1.0.1",
        "registry.example.com/cct-app:1.0.1",
    ]
    assert print_manifest() == FILE.read_text()


def test_update_of_the_app_leaves_the_database_alone() -> None:
    before = read_objects(print_manifest(TAG="1.0.0", DB_TAG="1.0.0"))
    after = read_objects(print_manifest(TAG="1.0.1", DB_TAG="1.0.0"))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("Job", "seeder"), ("Deployment", "app")}


def test_update_deletes_the_job_before_it_applies_the_file() -> None:
    """Kubernetes lets nobody change a Job."""
    update = DOCUMENT.commands("Update").splitlines()
    assert update[0] == "kubectl --namespace cct delete job seeder --ignore-not-found"
    assert update[1] == "manifest | kubectl apply -f -"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_documented_kustomization_has_another_database(tmp_path: Path) -> None:
    kustomization = re.search("```yaml\n(.*?)```", DOCUMENT.text, re.DOTALL)
    assert kustomization
    (tmp_path / "kustomization.yml").write_text(kustomization[1])
    shutil.copytree(FILE.parent, tmp_path / "deploy")
    text = run_command("kubectl", "kustomize", str(tmp_path))
    objects = read_objects(text)
    for item in objects.values():
        kubernetes_validate.validate(item, VERSIONS[-1], strict=True)
    assert objects.keys() == {(kind, name) for kind, name in OBJECTS if name != "db"}
    other = settings(environment("app") | objects["ConfigMap", "database"]["data"])
    assert other["db_host"] == "mysql.example.com"
    assert other["db_port"] == 3307
    assert other["db_tls"] == "verify-identity"
    allowed = {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"port": 3307, "protocol": "TCP"}],
    }
    assert objects["NetworkPolicy", "clients-of-db"]["spec"]["egress"] == [allowed, DNS]


class Containers:
    """Containers of db and app, with the rights of their pods, in one network."""

    def __init__(self, passwords: Path) -> None:
        self.name = f"cct-kubernetes-{os.getpid()}"
        self.passwords = passwords
        self.port = free_port()  # of the server, on this machine

    def build(self, name: str) -> str:
        """Return the image of a pod."""
        image = f"{self.name}-{name}"
        docker("build", "--quiet", f"--target={name}", f"--tag={image}", ".")
        return image

    def run(self, name: str, user: str, *options: str) -> None:
        """Start the container of a pod. Kubernetes does not use the health check of an image."""
        identity = (f"--name={self.name}-{name}", f"--user={user}", "--no-healthcheck")
        rights = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true")
        variables = [f"--env={key}={value}" for key, value in environment(name).items()]
        image = self.build(name)
        docker("run", "--detach", *identity, *rights, *variables, *options, image)

    def start_db(self) -> None:
        """Start db on a new disk. Mount each password as a file, as the Secret does."""
        context = pod("db")["securityContext"]
        group = context["fsGroup"]
        disk = f"--volume={self.name}:/var/lib/mysql:nocopy"
        new_disk = f"cd /var/lib/mysql; mkdir lost+found; chgrp -R {group} .; chmod -R 2770 ."
        as_root = ("--rm", "--user=0", "--entrypoint=sh", disk, self.build("db"))
        docker("run", *as_root, "-ec", new_disk)
        self.write_passwords()
        secret = f"--volume={self.passwords}:/run/secrets:ro"
        empty = ("--tmpfs=/tmp", "--tmpfs=/var/run/mysqld:mode=777")
        keepalive = "--sysctl=net.ipv4.tcp_keepalive_time=300"
        port = f"--publish=127.0.0.1:{self.port}:8080"
        user = f"{context['runAsUser']}:{context['runAsGroup']}"
        self.run("db", user, f"--group-add={group}", disk, secret, *empty, keepalive, port)

    def write_passwords(self) -> None:
        """Write the files that the Secret gives to db."""
        for volume in pod("db")["volumes"]:
            if volume["name"] == "passwords":
                for item in volume["secret"]["items"]:
                    file = self.passwords / item["path"]
                    file.parent.mkdir()
                    file.write_text(f"the password of {item['key']}")

    def start_app(self) -> None:
        """Start app beside db."""
        secret = f"--volume={self.passwords}/app:/run/secrets/app:ro"
        beside = f"--network=container:{self.name}-db"
        self.run("app", "10001:10001", secret, beside, "--env=DB_HOST=127.0.0.1")

    def exec(self, name: str, *command: str, user: str = "") -> str:
        """Run a command in the container of a pod; raise AssertionError if it fails."""
        return docker("exec", f"--user={user}", f"{self.name}-{name}", *command)

    def sql(self, statement: str) -> str:
        """Execute a statement as root."""
        return self.exec("db", "as-root.sh", "mysql", "-Ne", statement)

    def passes(self, kind: str) -> bool:
        """Return whether a probe of db passes."""
        probe = container("db")[kind]
        try:
            self.exec("db", "timeout", str(probe["timeoutSeconds"]), *probe["exec"]["command"])
        except AssertionError:
            return False
        return True

    def remove(self) -> None:
        """Remove the containers, images and the volume."""
        for name in ("app", "db"):
            docker("rm", "--force", "--volumes", f"{self.name}-{name}")
            docker("image", "rm", "--force", f"{self.name}-{name}")
        docker("volume", "rm", "--force", self.name)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Start db and app; yield them after the first start."""
    require_engine()
    folder = tmp_path_factory.mktemp("secret")
    folder.chmod(0o755)
    started = Containers(folder)
    try:
        started.start_db()
        until(lambda: started.passes("startupProbe"), "started", 240)
        started.start_app()
        yield started
    finally:
        started.remove()


def test_database_is_ready_with_the_rights_of_its_pod(containers: Containers) -> None:
    assert containers.exec("db", "id", "--user") == "999\n"
    assert containers.passes("readinessProbe")
    assert containers.passes("livenessProbe")


@pytest.mark.parametrize("user", ["999", "0"])
def test_users_sh_refuses_to_rotate(containers: Containers, user: str) -> None:
    """users.sh cannot replace the files of the Secret, so it changes nothing."""
    before = containers.sql("SELECT user, authentication_string, user_attributes FROM mysql.user")
    with pytest.raises(AssertionError, match="password cannot be replaced here"):
        containers.exec("db", "users.sh", "rotate", user=user)
    after = containers.sql("SELECT user, authentication_string, user_attributes FROM mysql.user")
    assert after == before


def test_idle_connections_to_the_database_stay_alive(containers: Containers) -> None:
    [sysctl] = pod("app")["securityContext"]["sysctls"]
    assert sysctl == {"name": "net.ipv4.tcp_keepalive_time", "value": "300"}
    until(lambda: "missing table" in get(containers.port, "/ready")[1], "connected")
    timers = []
    for line in containers.exec("app", "cat", "/proc/net/tcp").splitlines():
        _, _, peer, state, _, timer, *_ = line.split()
        if peer.endswith(":0CEA") and state == "01":  # port 3306, established
            timers.append(timer)
    assert timers
    for timer in timers:
        kind, hundredths = timer.split(":")
        assert kind == "02"  # keepalive
        assert int(hundredths, 16) <= 300_00


def test_database_that_refuses_is_alive_but_not_ready(containers: Containers) -> None:
    containers.sql("ALTER USER app ACCOUNT LOCK")
    assert not containers.passes("readinessProbe")
    assert containers.passes("livenessProbe")
    containers.sql("ALTER USER app ACCOUNT UNLOCK")
    assert containers.passes("readinessProbe")


def test_database_that_hangs_is_not_alive(containers: Containers) -> None:
    docker("kill", "--signal=STOP", f"{containers.name}-db")
    assert not containers.passes("livenessProbe")
    docker("kill", "--signal=CONT", f"{containers.name}-db")
    assert containers.passes("livenessProbe")


def test_killed_database_starts_again(containers: Containers) -> None:
    containers.sql("CREATE TABLE cct.marks (id INT)")
    docker("kill", f"{containers.name}-db")
    docker("start", f"{containers.name}-db")
    until(lambda: containers.passes("startupProbe"), "started", 240)
    assert containers.sql("SHOW TABLES FROM cct") == "marks\n"
