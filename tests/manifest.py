"""deploy/kubernetes.yml as objects."""

from typing import Any

import yaml

from tools import ROOT

Object = dict[str, Any]

FILE = ROOT / "deploy" / "kubernetes.yml"


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
