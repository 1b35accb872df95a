"""deploy/kubernetes as objects."""

from typing import Any

import yaml

from tools import ROOT

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]  # by kind and name

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION: Object = yaml.safe_load((FOLDER / "kustomization.yml").read_text())


def read_objects(text: str) -> Objects:
    """Return the objects of a text, by kind and name."""
    objects = {}
    for item in yaml.safe_load_all(text):
        objects[item["kind"], item["metadata"]["name"]] = item
    return objects


def read_folder() -> Objects:
    """Return the objects of all files, by kind and name."""
    objects: Objects = {}
    for name in KUSTOMIZATION["resources"]:
        objects |= read_objects((FOLDER / name).read_text())
    return objects


OBJECTS = read_folder()


def spec(kind: str, name: str) -> Object:
    """Return the specification of an object."""
    found: Object = OBJECTS[kind, name]["spec"]
    return found


def template(name: str) -> Object:
    """Return the pod template of db, seeder or app: labels and specification."""
    owners = {
        "db": spec("StatefulSet", "db"),
        "seeder": spec("CronJob", "seeder")["jobTemplate"]["spec"],
        "app": spec("Deployment", "app"),
    }
    found: Object = owners[name]["template"]
    return found


def pod(name: str) -> Object:
    """Return the specification in a pod template."""
    found: Object = template(name)["spec"]
    return found


def container(name: str) -> Object:
    """Return the only container of a pod."""
    [found] = pod(name)["containers"]
    return dict(found)


def image(name: str) -> str:
    """Return the image of a pod, as the kustomization names it."""
    for item in KUSTOMIZATION["images"]:
        if item["name"] == container(name)["image"]:
            return f"{item['newName']}:{item['newTag']}"
    raise AssertionError(f"no image for {name}")


def environment(name: str) -> dict[str, str]:
    """Return the environment of a container."""
    variables: dict[str, str] = {}
    if "envFrom" in container(name):
        [config_map] = KUSTOMIZATION["configMapGenerator"]
        for literal in config_map["literals"]:
            key, _, value = literal.partition("=")
            variables[key] = value
    for variable in container(name)["env"]:
        variables[variable["name"]] = variable["value"]
    return variables
