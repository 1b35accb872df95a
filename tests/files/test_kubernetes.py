"""deploy/kubernetes without a cluster. tests/platforms/test_cluster.py tests the rest on one."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shell import run_command
from tools import ROOT

DOCUMENT = ROOT / "docs" / "kubernetes.md"
FOLDER = ROOT / "deploy" / "kubernetes"


def render(folder: Path) -> dict[tuple[str, str], Any]:
    """Return the objects that `kubectl apply -k` sends, by kind and name."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl")
    objects = {}
    for item in yaml.safe_load_all(run_command("kubectl", "kustomize", str(folder))):
        objects[item["kind"], item["metadata"]["name"]] = item
    return objects


def test_documented_kustomization_has_another_database(tmp_path: Path) -> None:
    kustomization = re.search("```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert kustomization
    folder = shutil.copytree(FOLDER, tmp_path / "kubernetes")
    (folder / "kustomization.yml").write_text(kustomization[1])
    objects = render(folder)

    assert len(objects) == len(render(FOLDER)) - 2
    assert ("Service", "db") not in objects
    assert ("StatefulSet", "db") not in objects
    [config_map] = [key for key in objects if key[0] == "ConfigMap"]
    assert objects[config_map]["data"] == {
        "DB_HOST": "mysql.example.com",
        "DB_PORT": "3307",
        "DB_TLS": "verify-identity",
    }
    [database, names] = objects["NetworkPolicy", "clients-of-db"]["spec"]["egress"]
    assert database == {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"port": 3307, "protocol": "TCP"}],
    }
    assert {"port": 53, "protocol": "UDP"} in names["ports"]
