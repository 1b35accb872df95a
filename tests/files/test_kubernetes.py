"""deploy/kubernetes: schemas, agreement with other files, and rights."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from server import SHUTDOWN_TIMEOUT
from settings import Settings
from tests.documents import Document
from tests.manifest import (
    FOLDER,
    KUSTOMIZATION,
    OBJECTS,
    Object,
    Objects,
    container,
    environment,
    image,
    pod,
    read_objects,
    spec,
    template,
)
from tests.shell import run_command
from tools import ROOT

DOCUMENT = Document("docs/kubernetes.md", "sh")
LABEL = "app.kubernetes.io/name"
PODS = ("db", "seeder", "app")
DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


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
    commands = DOCUMENT.commands("Apply the folder")
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


def test_namespace_is_the_restricted_one() -> None:
    namespace = OBJECTS["Namespace", KUSTOMIZATION["namespace"]]["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


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
    assert image(name) == f"cct-{name}:latest"
    assert container(name)["imagePullPolicy"] == "IfNotPresent"  # kind loads it by hand


@pytest.mark.parametrize("name", ["seeder", "app"])
def test_service_links_set_no_port_of_the_database(name: str) -> None:
    """With service links, Kubernetes sets DB_PORT to a URL."""
    assert pod(name)["enableServiceLinks"] is False


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
    """By default, a probe acts on its third failure. Readiness must be earlier than liveness."""
    app = container("app")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert app[probe]["httpGet"]["path"] == "/health"
    assert "failureThreshold" not in app["readinessProbe"]
    assert "failureThreshold" not in app["livenessProbe"]
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
    drain = settings(environment("app"))["drain"]
    stop = 2 * SHUTDOWN_TIMEOUT + 2  # seconds; the last two for the database and the log
    assert pod("app")["terminationGracePeriodSeconds"] >= drain + stop


def test_database_has_a_day_to_start() -> None:
    probe = container("db")["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 24 * 60 * 60


def render(folder: Path) -> Objects:
    """Return the objects that `kubectl apply -k` sends."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    return read_objects(run_command("kubectl", "kustomize", str(folder)))


def render_with(folder: Path, old: str, new: str) -> Objects:
    """Return the objects after a change of the kustomization. The folder is a copy."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    text = (FOLDER / "kustomization.yml").read_text()
    assert old in text
    (folder / "kustomization.yml").write_text(text.replace(old, new))
    return render(folder)


def changed(before: Objects, after: Objects) -> set[tuple[str, str]]:
    """Return kind and name of what differs, or is in only one of the two."""
    return {key for key in before | after if before.get(key) != after.get(key)}


def test_rendered_objects_are_in_the_namespace() -> None:
    for item in render(FOLDER).values():
        if item["kind"] != "Namespace":
            assert item["metadata"]["namespace"] == "cct"


def test_registry_and_tag_reach_the_pod(tmp_path: Path) -> None:
    there = "newName: registry.example.com/cct-db, newTag: 1.0.1"
    objects = render_with(tmp_path, "newName: cct-db, newTag: latest", there)
    [db] = objects["StatefulSet", "db"]["spec"]["template"]["spec"]["containers"]
    assert db["image"] == "registry.example.com/cct-db:1.0.1"


def test_update_of_the_app_leaves_the_database_alone(tmp_path: Path) -> None:
    after = render_with(tmp_path, "cct-app, newTag: latest", "cct-app, newTag: 1.0.1")
    assert changed(render(FOLDER), after) == {("Deployment", "app")}


def test_changed_setting_replaces_the_pods_of_the_app_only(tmp_path: Path) -> None:
    before = render(FOLDER)
    after = render_with(tmp_path, "DB_TLS=required", "DB_TLS=disabled")
    [old, new] = sorted(key for key in before.keys() ^ after.keys())
    assert old[0] == new[0] == "ConfigMap"  # under another name
    assert changed(before, after) == {old, new, ("CronJob", "seeder"), ("Deployment", "app")}


def test_no_job_is_in_the_way_of_an_update() -> None:
    """Kubernetes lets nobody change a Job."""
    assert "Job" not in {kind for kind, _ in OBJECTS}
    assert spec("CronJob", "seeder")["suspend"] is True


def test_documented_kustomization_has_another_database(tmp_path: Path) -> None:
    kustomization = re.search("```yaml\n(.*?)```", DOCUMENT.text, re.DOTALL)
    assert kustomization
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "kustomization.yml").write_text(kustomization[1])
    objects = render(tmp_path)
    left_out = {(kind, name) for kind, name in OBJECTS if name == "db" and kind != "NetworkPolicy"}
    [config_map] = objects.keys() - OBJECTS.keys()
    assert objects.keys() == (OBJECTS.keys() - left_out) | {config_map}
    other = settings(environment("app") | objects[config_map]["data"])
    assert other["db_host"] == "mysql.example.com"
    assert other["db_port"] == 3307
    assert other["db_tls"] == "verify-identity"
    allowed = {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"port": 3307, "protocol": "TCP"}],
    }
    assert objects["NetworkPolicy", "clients-of-db"]["spec"]["egress"] == [allowed, DNS]
