"""KubeRay's manifests against the fields of its custom resources, and against what the job needs."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

import pipeline

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "schemas" / "kuberay.json").read_text())


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


RESOURCES = {
    document["kind"]: document
    for name in ("rayjob.yaml", "raycluster.yaml")
    for document in load(name)
    if document["apiVersion"] == "ray.io/v1"
}
CLUSTERS = {
    "RayJob": RESOURCES["RayJob"]["spec"]["rayClusterSpec"],
    "RayCluster": RESOURCES["RayCluster"]["spec"],
}


def check(resource: dict[str, Any]) -> None:
    schema = SCHEMA | {"$ref": f"#/$defs/{resource['kind']}"}
    jsonschema.Draft202012Validator(schema).validate(resource)


@pytest.mark.parametrize("kind", RESOURCES)
def test_a_manifest_has_fields_that_kuberay_knows(kind: str) -> None:
    check(RESOURCES[kind])


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "an unknown field of the job": lambda job: job["spec"].update(entryPoint="x"),
    "an unknown field of the cluster": lambda job: job["spec"]["rayClusterSpec"].update(autoscaling=True),
    "an unknown field of a group": lambda job: groups(job)[0].update(maxReplica=3),
    "an unknown field of a pod": lambda job: groups(job)[1]["template"]["spec"].update(nodeselector={}),
    "an unknown field of a container": lambda job: container(job).update(resource={}),
    "a number where a text belongs": lambda job: groups(job)[1]["rayStartParams"].update({"num-cpus": 1}),
    "a text where a number belongs": lambda job: groups(job)[0].update(replicas="1"),
    "no group name": lambda job: groups(job)[0].pop("groupName"),
    "another version of the API": lambda job: job.update(apiVersion="ray.io/v1alpha1"),
    "a mode that is none": lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
}


def groups(job: dict[str, Any]) -> list[dict[str, Any]]:
    return list(job["spec"]["rayClusterSpec"]["workerGroupSpecs"])


def container(job: dict[str, Any]) -> dict[str, Any]:
    return first_container(groups(job)[0])


@pytest.mark.parametrize("name", CHANGES)
def test_a_mistake_in_a_manifest_is_found(name: str) -> None:
    job = copy.deepcopy(RESOURCES["RayJob"])
    CHANGES[name](job)
    with pytest.raises(jsonschema.ValidationError):
        check(job)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_processors_and_gpus_are_groups_of_their_own_that_grow_and_shrink(kind: str) -> None:
    cluster = CLUSTERS[kind]
    assert cluster["enableInTreeAutoscaling"] is True
    by_name = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(by_name) == {"cpu", "gpu"}
    limits = {name: first_container(group)["resources"]["limits"] for name, group in by_name.items()}
    assert "nvidia.com/gpu" not in limits["cpu"]
    assert int(limits["gpu"]["nvidia.com/gpu"]) == 1
    # A GPU node has a CPU for its actor and none for a task; the head has none at all.
    assert by_name["gpu"]["rayStartParams"]["num-cpus"] == "1"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in by_name.values():
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


def first_container(group: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("kind", CLUSTERS)
def test_versions_and_images_fit_together(kind: str) -> None:
    cluster = CLUSTERS[kind]
    assert cluster["rayVersion"] == ray.__version__
    version = pipeline.__version__
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        wanted = "gpu" if group.get("groupName") == "gpu" else "cpu"
        assert first_container(group)["image"].endswith(f"/music-feature-store:{version}-{wanted}")


@pytest.mark.parametrize("kind", CLUSTERS)
def test_pods_have_no_rights_that_they_do_not_need(kind: str) -> None:
    for group in [CLUSTERS[kind]["headGroupSpec"], *CLUSTERS[kind]["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert first_container(group)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert first_container(group)["securityContext"]["allowPrivilegeEscalation"] is False
        assert pod["serviceAccountName"] == load("service-account.yaml")[0]["metadata"]["name"]
        resources = first_container(group)["resources"]
        assert resources["requests"] == resources["limits"]


def test_a_run_asks_for_as_many_gpus_as_the_cluster_may_have() -> None:
    settings = next(document for document in load("rayjob.yaml") if document["kind"] == "ConfigMap")
    gpus = next(group for group in CLUSTERS["RayJob"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert tomllib.loads(settings["data"]["embed.toml"])["num-gpus"] == gpus["maxReplicas"]
    text = (FOLDER / "raycluster.yaml").read_text()
    gpus = next(group for group in CLUSTERS["RayCluster"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert re.findall(r"--num-gpus (\d+)", text) == [str(gpus["maxReplicas"])]


def test_the_settings_are_where_the_job_looks_for_them() -> None:
    job = RESOURCES["RayJob"]["spec"]
    settings = next(document for document in load("rayjob.yaml") if document["kind"] == "ConfigMap")
    pod = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: volume["configMap"]["name"] for volume in pod["volumes"]}
    mount = pod["containers"][0]["volumeMounts"][0]
    assert volumes[mount["name"]] == settings["metadata"]["name"]
    path = Path(job["entrypoint"].split("--config ")[1])
    assert str(path.parent) == mount["mountPath"]
    assert path.name in settings["data"]
