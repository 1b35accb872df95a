"""kubernetes.yml: valid, restricted, of a piece with the other files, and its pods at work on a Docker engine.

No cluster is pretended. The last tests run the containers with the users, rights, volumes, settings and probes that
the file gives them; scheduling, restarts, Services and NetworkPolicies need a real cluster.
"""

import copy
import re
import secrets
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from seed import SeedSettings
from server import Settings
from tests.docker import docker, require_engine, until
from tests.local import ROOT

Object = dict[str, Any]

OBJECTS: list[Object] = list(yaml.safe_load_all((ROOT / "kubernetes.yml").read_text()))
COMPOSE: Object = yaml.safe_load(
    re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())  # ${NAME:-default}
)
VERSIONS = sorted({version for version in all_versions() if int(version.split(".")[1]) >= 30})
NAME = "app.kubernetes.io/name"
PODS: dict[str, Object] = {
    template["metadata"]["labels"][NAME]: template for o in OBJECTS if (template := o.get("spec", {}).get("template"))
}


def one(kind: str, name: str) -> Object:
    """Return the spec of the one object of that kind and name."""
    [spec] = [o["spec"] for o in OBJECTS if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return spec  # type: ignore[no-any-return]


def container(pod: str) -> Object:
    """Return the one container of a pod."""
    [only] = PODS[pod]["spec"]["containers"]
    return only  # type: ignore[no-any-return]


def env(pod: str) -> dict[str, str]:
    """Return the environment of a pod's container."""
    return {variable["name"]: variable["value"] for variable in container(pod)["env"]}


def selected(selector: Object) -> set[str]:
    """Return the pods that a selector means, be it of labels alone or with matchLabels and matchExpressions."""
    expressions = selector.get("matchExpressions", [])
    labels = selector if selector.keys() <= {NAME} else selector.get("matchLabels", {})
    assert all(expression["operator"] == "In" for expression in expressions)
    return {
        pod
        for pod, template in PODS.items()
        if labels.items() <= template["metadata"]["labels"].items()
        and all(template["metadata"]["labels"].get(e["key"]) in e["values"] for e in expressions)
    }


@pytest.fixture
def password_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the settings find the files that DB_PASSWORD_FILE names."""
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"password")


# ---------------------------------------------------------------- the schema


@pytest.mark.parametrize("version", VERSIONS)
def test_the_file_is_valid_in_each_version_of_kubernetes(version: str) -> None:
    for o in OBJECTS:
        kubernetes_validate.validate(o, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_validation_refuses_fields_that_do_not_exist(version: str) -> None:
    for o in OBJECTS:
        with pytest.raises(kubernetes_validate.ValidationError, match="unexpected"):
            kubernetes_validate.validate(o | {"unknown": 1}, version, strict=True)
        if "template" in o.get("spec", {}):
            wrong = copy.deepcopy(o)
            wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
            with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
                kubernetes_validate.validate(wrong, version, strict=True)


def test_the_oldest_version_that_the_file_names_is_tested() -> None:
    assert VERSIONS[0].startswith(
        re.findall(r"Kubernetes (\d\.\d+) or newer", (ROOT / "kubernetes.yml").read_text())[0]
    )


# ---------------------------------------------------------------- of a piece with the other files


@pytest.mark.parametrize("pod", PODS)
def test_images_are_those_of_compose(pod: str) -> None:
    image = COMPOSE["services"][pod]["image"].replace("${REGISTRY:-}", "").replace("${TAG:-latest}", "latest")
    assert container(pod)["image"] == image


@pytest.mark.parametrize("pod", ["seeder", "app"])
def test_images_that_a_node_was_given_are_not_pulled(pod: str) -> None:
    assert container(pod)["imagePullPolicy"] == "IfNotPresent"


@pytest.mark.usefixtures("password_files")
def test_ports_are_those_of_compose_and_of_the_settings() -> None:
    settings = Settings.read(env("app"))
    [published] = COMPOSE["services"]["app"]["ports"]
    [service] = one("Service", "app")["ports"]
    [port] = container("app")["ports"]
    assert str(service["port"]) == published.split(":")[1]
    assert service["targetPort"] == port["name"]
    assert port["containerPort"] == settings.port
    [service] = one("Service", "db")["ports"]
    [port] = container("db")["ports"]
    assert service["port"] == port["containerPort"] == settings.database.port


@pytest.mark.usefixtures("password_files")
def test_services_have_the_names_by_which_they_are_called() -> None:
    for settings in (Settings.read(env("app")), SeedSettings.read(env("seeder"))):
        assert selected(one("Service", settings.database.host)["selector"]) == {"db"}
    assert one("StatefulSet", "db")["serviceName"] == "db"
    assert one("Service", "db")["clusterIP"] == "None"
    assert selected(one("Service", "app")["selector"]) == {"app"}


class Asked(Mapping[str, str]):
    """An environment that remembers which names were asked for."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return self.env[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.env)

    def __len__(self) -> int:
        return len(self.env)


@pytest.mark.parametrize(("pod", "read"), [("seeder", SeedSettings.read), ("app", Settings.read)])
@pytest.mark.usefixtures("password_files")
def test_programs_read_every_setting(pod: str, read: Callable[[Mapping[str, str]], object]) -> None:
    asked = Asked(env(pod))
    read(asked)
    assert asked.env.keys() <= asked.names


@pytest.mark.usefixtures("password_files")
def test_settings_are_those_of_compose_but_for_what_a_cluster_needs() -> None:
    compose = {
        pod: {name: str(value) for name, value in COMPOSE["services"][pod]["environment"].items()} for pod in PODS
    }
    assert env("db") == compose["db"]
    here = SeedSettings.read(env("seeder"))
    assert here == replace(SeedSettings.read(compose["seeder"]), wait=here.wait)
    server = Settings.read(env("app"))
    assert server == replace(Settings.read(compose["app"]), port=server.port, drain=server.drain)


def test_memory_is_that_of_compose() -> None:
    for pod in ("seeder", "app"):
        limit = container(pod)["resources"]["limits"]["memory"]
        assert limit.removesuffix("i").lower() == COMPOSE["services"][pod]["mem_limit"]


def test_users_of_the_images_are_numbers() -> None:
    """The kubelet cannot tell from a name that it is not root's."""
    users = re.findall(r"^USER (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert users
    assert all(re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user) for user in users)


# ---------------------------------------------------------------- the Secret


def secret_files(pod: str) -> dict[str, str]:
    """Return which key of the Secret stands in which file of a pod."""
    items = {volume["name"]: volume["secret"]["items"] for volume in PODS[pod]["spec"]["volumes"] if "secret" in volume}
    return {
        f"{mount['mountPath']}/{item['path']}": item["key"]
        for mount in container(pod)["volumeMounts"]
        for item in items.get(mount["name"], [])
    }


@pytest.mark.parametrize("pod", PODS)
def test_secrets_have_the_paths_that_they_have_in_compose(pod: str) -> None:
    service = COMPOSE["services"][pod]
    mounts = [mount.split(":") for mount in service["volumes"]]
    files = {f"{path}/password": name.removesuffix("-password") for name, path, *_ in mounts if "password" in name}
    configs = {config["target"]: COMPOSE["configs"][config["source"]]["file"] for config in service.get("configs", [])}
    assert secret_files(pod) == files | {path: Path(file).name for path, file in configs.items()}


@pytest.mark.parametrize("pod", PODS)
def test_files_that_settings_and_probes_name_come_from_the_secret(pod: str) -> None:
    named = set(re.findall(r"/run/secrets/[\w/]+", str(container(pod))))
    assert named - {mount["mountPath"] for mount in container(pod)["volumeMounts"]} <= secret_files(pod).keys()
    assert {value for name, value in env(pod).items() if name.endswith("_FILE")} <= named


def test_one_secret_holds_all_and_the_readme_makes_it() -> None:
    keys = {key for pod in PODS for key in secret_files(pod).values()}
    names = {v["secret"]["secretName"] for pod in PODS.values() for v in pod["spec"]["volumes"] if "secret" in v}
    readme = "".join(path.read_text() for path in ROOT.glob("README*.md"))
    assert names == set(re.findall(r"create secret generic (\w+)", readme))
    assert keys == set(re.findall(r"--from-file=([\w.]+)", readme))


@pytest.mark.parametrize("pod", PODS)
def test_volumes_that_are_mounted_exist(pod: str) -> None:
    claims = [claim["metadata"]["name"] for claim in one("StatefulSet", "db")["volumeClaimTemplates"] if pod == "db"]
    volumes = [volume["name"] for volume in PODS[pod]["spec"]["volumes"]]
    assert sorted(claims + volumes) == sorted(mount["name"] for mount in container(pod)["volumeMounts"])


# ---------------------------------------------------------------- names


def test_everything_stands_in_the_namespace_that_enforces_the_restricted_standard() -> None:
    namespace, *others = OBJECTS
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {o["metadata"]["namespace"] for o in others} == {namespace["metadata"]["name"]}


def test_controllers_own_their_pods() -> None:
    assert selected(one("StatefulSet", "db")["selector"]) == {"db"}
    assert selected(one("Deployment", "app")["selector"]) == {"app"}
    assert selected(one("PodDisruptionBudget", "app")["selector"]) == {"app"}
    [spread] = PODS["app"]["spec"]["topologySpreadConstraints"]
    assert selected(spread["labelSelector"]) == {"app"}


def reach(direction: str, pod: str) -> set[tuple[str, str | int]]:
    """Return which peers, None for anybody, and which ports the NetworkPolicies open to a pod."""
    found: set[tuple[str, str | int]] = set()
    for o in OBJECTS:
        if o["kind"] == "NetworkPolicy" and pod in selected(o["spec"]["podSelector"]):
            for rule in o["spec"].get(direction, []):
                assert direction.capitalize() in o["spec"]["policyTypes"]
                selectors = [peer["podSelector"] for peer in rule.get("from" if direction == "ingress" else "to", [])]
                peers = {peer for selector in selectors for peer in selected(selector)} if selectors else {"anybody"}
                found |= set(product(peers, (port["port"] for port in rule["ports"])))
    return found


def test_only_seeder_and_app_reach_db_and_everybody_reaches_app_on_its_port_alone() -> None:
    assert one("NetworkPolicy", "default-deny") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [http] = container("app")["ports"]
    assert reach("ingress", "db") == {("seeder", 3306), ("app", 3306)}
    assert reach("ingress", "app") == {("anybody", http["name"])}
    assert reach("ingress", "seeder") == set()


def test_only_dns_and_db_are_reached_from_the_pods() -> None:
    assert reach("egress", "db") == set()
    assert reach("egress", "seeder") == reach("egress", "app") == {("db", 3306), ("anybody", 53)}
    [dns] = [rule for rule in one("NetworkPolicy", "clients-of-db")["egress"] if "to" not in rule]
    assert {port.get("protocol", "TCP") for port in dns["ports"]} == {"TCP", "UDP"}


# ---------------------------------------------------------------- the restricted Pod Security Standard

# Field by field as in the documentation of the Pod Security Standards, for 1.30 (and the rule on hosts of 1.34): what
# may stand there, None for nothing.
CONTEXT = "spec.containers[*].securityContext."
STANDARD: dict[str, list[Any]] = {
    # baseline
    "spec.securityContext.windowsOptions.hostProcess": [None, False],
    CONTEXT + "windowsOptions.hostProcess": [None, False],
    "spec.hostNetwork": [None, False],
    "spec.hostPID": [None, False],
    "spec.hostIPC": [None, False],
    CONTEXT + "privileged": [None, False],
    "spec.containers[*].ports[*].hostPort": [None, 0],
    **{
        f"spec.containers[*].{hook}.{handler}.host": [None, ""]
        for hook in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")
        for handler in ("httpGet", "tcpSocket")
    },
    "metadata.annotations": [None],  # where AppArmor's profile stood before 1.30
    "spec.securityContext.appArmorProfile.type": [None, "RuntimeDefault", "Localhost"],
    CONTEXT + "appArmorProfile.type": [None, "RuntimeDefault", "Localhost"],
    "spec.securityContext.seLinuxOptions.type": [None, "", "container_t", "container_init_t", "container_kvm_t"],
    "spec.securityContext.seLinuxOptions.user": [None, ""],
    "spec.securityContext.seLinuxOptions.role": [None, ""],
    CONTEXT + "seLinuxOptions.type": [None, "", "container_t", "container_init_t", "container_kvm_t"],
    CONTEXT + "seLinuxOptions.user": [None, ""],
    CONTEXT + "seLinuxOptions.role": [None, ""],
    CONTEXT + "procMount": [None, "Default"],
    "spec.securityContext.sysctls[*].name": """
        kernel.shm_rmid_forced net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports
        net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range net.ipv4.tcp_fin_timeout
        net.ipv4.tcp_keepalive_intvl net.ipv4.tcp_keepalive_probes net.ipv4.tcp_keepalive_time net.ipv4.tcp_syncookies
    """.split(),
    # restricted
    "spec.volumes[*]": "configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret".split(),
    CONTEXT + "allowPrivilegeEscalation": [False],
    "spec.securityContext.runAsNonRoot": [None, True],
    CONTEXT + "runAsNonRoot": [True],
    "spec.securityContext.runAsUser": [None, *range(1, 65536)],
    CONTEXT + "runAsUser": [None, *range(1, 65536)],
    "spec.securityContext.seccompProfile.type": [None, "RuntimeDefault", "Localhost"],
    CONTEXT + "seccompProfile.type": ["RuntimeDefault", "Localhost"],
    CONTEXT + "capabilities.add[*]": ["NET_BIND_SERVICE"],
    CONTEXT + "capabilities.drop": [["ALL"]],
}


def values(node: Object | None, path: str) -> list[Any]:
    """Return what stands at a path of the documentation's form, None where nothing does."""
    key, _, rest = path.partition(".")
    if key.endswith("[*]"):
        items = (node or {}).get(key.removesuffix("[*]"), [])
        return [value for item in items for value in values(item, rest)] if rest else items
    value = (node or {}).get(key)
    return values(value, rest) if rest else [value]


def violations(template: Object) -> list[str]:
    """Return which rules of the restricted standard a pod breaks."""
    pod = copy.deepcopy(template)
    spec = pod["spec"]
    spec["containers"] += spec.get("initContainers", []) + spec.get("ephemeralContainers", [])
    for each in spec["containers"]:
        each["securityContext"] = spec.get("securityContext", {}) | each.get("securityContext", {})
    spec["volumes"] = [kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"]
    return [path for path, allowed in STANDARD.items() for value in values(pod, path) if value not in allowed]


@pytest.mark.parametrize("pod", PODS)
def test_pods_pass_the_restricted_standard(pod: str) -> None:
    assert violations(PODS[pod]) == []


@pytest.mark.parametrize("path", STANDARD)
def test_each_rule_of_the_standard_bites(path: str) -> None:
    broken = copy.deepcopy(PODS["db"])
    node: Any = broken
    *steps, last = path.split(".")
    for step in steps:
        key, star, _ = step.partition("[*]")
        node = node.setdefault(key, [{}] if star else {})
        node = node[0] if star else node
    node[last.removesuffix("[*]")] = [{"bad": 0}] if last.endswith("[*]") else 0.5
    assert path in violations(broken)


@pytest.mark.parametrize("pod", PODS)
def test_pods_have_limits_and_neither_a_token_nor_a_writable_root(pod: str) -> None:
    assert PODS[pod]["spec"]["automountServiceAccountToken"] is False
    assert container(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    assert container(pod)["resources"].keys() == {"requests", "limits"}
    assert "memory" in container(pod)["resources"]["limits"]


@pytest.mark.parametrize("pod", ["seeder", "app"])
def test_a_service_named_db_does_not_set_db_port(pod: str) -> None:
    """Kubernetes would set DB_PORT=tcp://... where db has a cluster address."""
    assert PODS[pod]["spec"]["enableServiceLinks"] is False


# ---------------------------------------------------------------- the course of time


def seconds(probe: Object, failures: int | None = None) -> int:
    """Return how long a probe takes to fail so often, its threshold where no number is given."""
    if failures is None:
        failures = probe.get("failureThreshold", 3)
    return failures * int(probe.get("periodSeconds", 10))


def test_the_grace_period_covers_the_drain_and_the_requests_in_flight() -> None:
    [timeout] = re.findall(r"shutdown_timeout=([\d.]+)", (ROOT / "server.py").read_text())
    grace = PODS["app"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > float(env("app")["DRAIN"]) + 2 * float(timeout)  # aiohttp spends it twice at worst


def test_an_unhealthy_pod_leaves_the_service_before_it_is_restarted() -> None:
    probes = container("app")
    threshold = probes["livenessProbe"].get("failureThreshold", 3)
    assert seconds(probes["readinessProbe"]) < seconds(probes["livenessProbe"], threshold - 1)


@pytest.mark.usefixtures("password_files")
def test_a_readiness_probe_outlasts_a_database_that_does_not_answer() -> None:
    assert container("app")["readinessProbe"]["timeoutSeconds"] > Settings.read(env("app")).database.timeout


def test_a_database_that_recovers_is_left_in_peace_for_a_day() -> None:
    assert seconds(container("db")["startupProbe"]) >= 24 * 60 * 60


def test_an_update_or_an_emptied_node_takes_no_more_pods_than_can_be_spared() -> None:
    deployment, budget = one("Deployment", "app"), one("PodDisruptionBudget", "app")
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert budget["maxUnavailable"] < deployment["replicas"] == 3


@pytest.mark.usefixtures("password_files")
def test_the_seeder_waits_and_goes() -> None:
    assert SeedSettings.read(env("seeder")).wait >= 300
    assert one("Job", "seeder")["ttlSecondsAfterFinished"] > 0


# ---------------------------------------------------------------- on a Docker engine


def fill_volumes(pod: str, secret: dict[str, str]) -> str:
    """Return a shell script that makes a pod's volumes in /v as the kubelet does."""
    spec, lines = PODS[pod]["spec"], ["set -e", "umask 022"]
    for volume in spec["volumes"]:
        lines.append(f"mkdir -m 777 /v/{volume['name']}")
        for item in volume.get("secret", {}).get("items", []):
            file = Path("/v", volume["name"], item["path"])
            lines += [f"mkdir -p {file.parent}", f"printf %s {shlex.quote(secret[item['key']])} >{file}"]
    for claim in one("StatefulSet", "db")["volumeClaimTemplates"] if pod == "db" else []:
        disk = f"/v/{claim['metadata']['name']}"
        lines.append(f"mkdir {disk} && mkdir -m 700 {disk}/lost+found")  # as on a new disk
        if group := spec["securityContext"].get("fsGroup"):
            lines.append(f"chgrp {group} {disk} && chmod 2775 {disk}")
    return "\n".join(lines)


class Stack:
    """The containers of kubernetes.yml, each started by `run` as its pod says."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.name = f"cct-kubernetes-{secrets.token_hex(4)}"
        self.secret = {"users.sh": (ROOT / "users.sh").read_text()}
        self.secret |= {user: f"{secrets.token_hex(24)}\n" for user in ("root", "seeder", "app")}
        self.images = {"db": container("db")["image"]}
        for pod in ("seeder", "app"):
            self.images[pod] = f"{self.name}-{pod}"
            docker("build", "--quiet", "--target", pod, "--tag", self.images[pod], str(ROOT))
            stack.callback(docker, "rmi", self.images[pod])
        docker("network", "create", self.name)
        stack.callback(docker, "network", "rm", self.name)
        for pod in PODS:
            docker("volume", "create", f"{self.name}-{pod}")
            stack.callback(docker, "volume", "rm", f"{self.name}-{pod}")
            volume = f"--volume={self.name}-{pod}:/v"
            docker("run", "--rm", "--user=0", volume, self.images["app"], "sh", "-c", fill_volumes(pod, self.secret))

    def run(self, pod: str, *options: str) -> str:
        """Start a pod's container and return its name."""
        spec, it = PODS[pod]["spec"], container(pod)
        context = spec["securityContext"] | it["securityContext"]
        name = f"{self.name}-{pod}-{secrets.token_hex(4)}"
        services = [o for o in OBJECTS if o["kind"] == "Service" and pod in selected(o["spec"]["selector"])]
        mounts = [
            f"--mount=type=volume,src={self.name}-{pod},dst={mount['mountPath']},"
            f"volume-subpath={mount['name']},volume-nocopy"
            for mount in it["volumeMounts"]
        ]
        docker(
            *("run", "--detach", f"--name={name}", f"--network={self.name}"),
            *(f"--network-alias={service['metadata']['name']}" for service in services),
            *(f"--env={key}={value}" for key, value in env(pod).items()),
            *mounts,
            *([f"--user={context['runAsUser']}:{context['runAsGroup']}"] if "runAsUser" in context else []),
            *([f"--group-add={context['fsGroup']}"] if "fsGroup" in context else []),
            *(["--read-only"] if context["readOnlyRootFilesystem"] else []),
            *(f"--cap-drop={capability}" for capability in context["capabilities"]["drop"]),
            *([] if context["allowPrivilegeEscalation"] else ["--security-opt=no-new-privileges"]),
            f"--memory={it['resources']['limits']['memory'].removesuffix('i').lower()}",
            *options,
            self.images[pod],
        )
        self.stack.callback(docker, "rm", "--force", "--volumes", name)
        return name

    def passes(self, name: str, probe: Object) -> bool:
        """Execute a probe once, as the kubelet would."""
        timeout = probe.get("timeoutSeconds", 1)
        if "exec" in probe:
            command = ["docker", "exec", name, *probe["exec"]["command"]]
            try:
                return subprocess.run(command, check=False, capture_output=True, timeout=timeout).returncode == 0
            except subprocess.TimeoutExpired:
                return False
        try:
            return get(name, probe["httpGet"]["path"], timeout)[0] < 400
        except OSError:
            return False

    def wait(self, name: str, probe: Object, expected: bool = True) -> None:
        """Wait until a probe passes, or fails, while the container runs."""

        def reached() -> bool:
            assert docker("inspect", "--format={{.State.Running}}", name) == "true\n", docker("logs", name)
            return self.passes(name, probe) is expected

        until(reached, f"{'passing' if expected else 'failing'}: {probe}", 300)

    def seed(self) -> str:
        """Run the seeder to its end and return its log."""
        name = self.run("seeder")
        assert docker("wait", name) == "0\n", docker("logs", name)
        return docker("logs", name)

    def sql(self, name: str, statement: str) -> None:
        """Execute a statement as root on the socket of the database."""
        login = "MYSQL_PWD=$(cat /run/secrets/root/password) mysql -u root -e"
        docker("exec", name, "sh", "-c", f"{login} {shlex.quote(statement)}")


def get(name: str, path: str, timeout: float = 3) -> tuple[int, str]:
    """Return status and text of what the server in a container answers."""
    address = docker("port", name, str(container("app")["ports"][0]["containerPort"])).strip()
    try:
        with urlopen(f"http://{address}{path}", timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


DB, APP = container("db"), container("app")
PUBLISHED = f"--publish=127.0.0.1::{APP['ports'][0]['containerPort']}"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    require_engine()
    with ExitStack() as exits:
        yield Stack(exits)


@pytest.fixture(scope="module")
def db(stack: Stack) -> str:
    """Give the database after its first start, through which the seeder waited."""
    early = stack.run("seeder")
    name = stack.run("db")
    assert not stack.passes(name, DB["startupProbe"])
    stack.wait(name, DB["startupProbe"])
    assert docker("wait", early) == "0\n", docker("logs", early)
    assert "inserted 100 accounts" in docker("logs", early)
    return name


@pytest.fixture
def app(stack: Stack, db: str) -> Iterator[str]:
    """Give a server that is ready."""
    name = stack.run("app", PUBLISHED)
    stack.wait(name, APP["startupProbe"])
    stack.wait(name, APP["readinessProbe"])
    yield name
    docker("stop", "--time=0", name)


def test_every_probe_of_the_database_passes(stack: Stack, db: str) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert stack.passes(db, DB[probe]), probe


def test_the_seeder_may_be_applied_again(stack: Stack, db: str) -> None:
    assert "nothing to do" in stack.seed()


def test_the_page_is_answered(stack: Stack, app: str) -> None:
    assert stack.passes(app, APP["livenessProbe"])
    status, page = get(app, "/")
    assert status == 200
    assert "account50@example.com" in page


def test_a_database_that_refuses_is_not_ready_but_alive(stack: Stack, db: str) -> None:
    stack.sql(db, "ALTER USER app ACCOUNT LOCK")
    assert not stack.passes(db, DB["readinessProbe"])
    assert stack.passes(db, DB["livenessProbe"])
    stack.sql(db, "ALTER USER app ACCOUNT UNLOCK")


def test_a_database_that_hangs_is_not_alive(stack: Stack, db: str) -> None:
    docker("kill", "--signal=STOP", db)
    assert not stack.passes(db, DB["livenessProbe"])
    docker("kill", "--signal=CONT", db)
    stack.wait(db, DB["livenessProbe"])


def test_a_killed_database_recovers_with_what_it_had_and_the_server_finds_it(stack: Stack, db: str, app: str) -> None:
    docker("kill", db)
    stack.wait(app, APP["readinessProbe"], expected=False)
    assert stack.passes(app, APP["livenessProbe"])
    docker("start", db)
    stack.wait(db, DB["startupProbe"])
    assert "nothing to do" in stack.seed()
    stack.wait(app, APP["readinessProbe"])


def test_an_unhealthy_server_fails_its_probes_until_it_is_restarted(stack: Stack, app: str) -> None:
    get(app, "/make-unhealthy")
    assert not stack.passes(app, APP["livenessProbe"])
    assert not stack.passes(app, APP["readinessProbe"])
    docker("restart", app)
    stack.wait(app, APP["startupProbe"])
    stack.wait(app, APP["readinessProbe"])


def test_a_server_that_stops_refuses_to_be_ready_serves_on_and_ends_within_its_grace(stack: Stack, app: str) -> None:
    started = time.monotonic()
    docker("kill", "--signal=TERM", app)
    stack.wait(app, APP["readinessProbe"], expected=False)
    assert get(app, "/ready") == (503, "stopping\n")
    assert get(app, "/")[0] == 200
    assert stack.passes(app, APP["livenessProbe"])
    assert docker("wait", app) == "0\n"
    grace = PODS["app"]["spec"]["terminationGracePeriodSeconds"]
    assert float(env("app")["DRAIN"]) <= time.monotonic() - started < grace
