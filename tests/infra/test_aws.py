"""The EC2 cluster file and the IAM policies."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import parliament
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "aws"
CLUSTER = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
POLICIES = {name: json.loads((FOLDER / f"{name}-policy.json").read_text()) for name in ("store", "launch")}


def find_faults(policy: dict[str, Any]) -> list[str]:
    """Return what parliament says of a policy; no single statement names a launch's resources, as is meant."""
    findings = parliament.analyze_policy_string(json.dumps(policy)).findings
    return [finding.issue for finding in findings if not is_of_a_launch(finding)]


def is_of_a_launch(finding: parliament.finding.Finding) -> bool:
    mismatch = finding.issue == "RESOURCE_MISMATCH"
    return mismatch and {item["action"] for item in finding.detail} == {"ec2:RunInstances"}


def list_allowed(policy: dict[str, Any]) -> set[tuple[str, str]]:
    allowed = set()
    for statement in policy["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        allowed |= {(action, resource) for action in actions for resource in resources}
    return allowed


def test_the_cluster_file_has_fields_that_ray_knows() -> None:
    jsonschema.validate(CLUSTER, SCHEMA)


def node(cluster: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster["available_node_types"][name]
    return found


Change = Callable[[dict[str, Any]], Any]
CLUSTER_CHANGES: dict[str, Change] = {
    "an unknown field": lambda cluster: cluster.update(idle_timeout=5),
    "an unknown field of a kind of node": lambda cluster: node(cluster, "cpu").update(workers=1),
    "no resources": lambda cluster: node(cluster, "gpu").pop("resources"),
    "resources that are no numbers": lambda cluster: cluster["available_node_types"]["gpu"]["resources"].update(
        GPU="1"
    ),
    "commands that are no list": lambda cluster: cluster.update(head_start_ray_commands="ray stop"),
}


@pytest.mark.parametrize("name", CLUSTER_CHANGES)
def test_a_mistake_in_the_cluster_file_is_found(name: str) -> None:
    cluster = copy.deepcopy(CLUSTER)
    CLUSTER_CHANGES[name](cluster)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, SCHEMA)


def test_ray_prepares_it_as_it_stands_and_adds_nothing_to_install() -> None:
    prepared = prepare_config(copy.deepcopy(CLUSTER))
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == set(CLUSTER["available_node_types"])
    for name, value in prepared.items():
        if name.endswith("setup_commands"):
            assert value == []
    for kind in prepared["available_node_types"].values():
        assert kind.get("worker_setup_commands", []) == []


def test_workers_start_when_there_is_work_and_end_after_it() -> None:
    kinds = CLUSTER["available_node_types"]
    workers = {name: kind for name, kind in kinds.items() if name != CLUSTER["head_node_type"]}
    assert {name: kind["resources"].get("GPU", 0) for name, kind in workers.items()} == {"cpu": 0, "gpu": 1}
    assert all(kind["min_workers"] == 0 for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= CLUSTER["max_workers"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert workers["gpu"]["resources"]["CPU"] == 1  # the actor's: no task fits beside it
    text = (FOLDER / "cluster.yaml").read_text()
    assert re.findall(r"--num-gpus (\d+)", text) == [str(workers["gpu"]["max_workers"])]


def test_a_launch_is_allowed_for_the_kinds_of_the_cluster_alone() -> None:
    kinds = {kind["node_config"]["InstanceType"] for kind in CLUSTER["available_node_types"].values()}
    statement = next(item for item in POLICIES["launch"]["Statement"] if item["Sid"] == "LaunchOfTheseKinds")
    condition = statement["Condition"]["StringEquals"]
    head = CLUSTER["available_node_types"]["head"]["node_config"]["InstanceType"]
    assert set(condition["ec2:InstanceType"]) == kinds - {head}
    assert condition["aws:RequestTag/ray-cluster-name"] == CLUSTER["cluster_name"]


def test_what_is_not_the_clusters_own_cannot_be_ended() -> None:
    for statement in POLICIES["launch"]["Statement"]:
        if "ec2:TerminateInstances" in statement["Action"]:
            assert statement["Condition"]["StringEquals"] == {
                "aws:ResourceTag/ray-cluster-name": CLUSTER["cluster_name"]
            }
            return
    pytest.fail("the head must end workers")


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_follows_the_grammar_and_names_real_actions(name: str) -> None:
    assert find_faults(POLICIES[name]) == []


POLICY_CHANGES: dict[str, Change] = {
    "an action that is none": lambda policy: policy["Statement"][1].update(Action="s3:ReadObject"),
    "an action on what it does not act on": lambda policy: policy["Statement"][1].update(
        Resource="arn:aws:s3:::example-audio"
    ),
    "no effect": lambda policy: policy["Statement"][0].pop("Effect"),
    "an effect that is none": lambda policy: policy["Statement"][0].update(Effect="Permit"),
    "an unknown field": lambda policy: policy["Statement"][0].update(Actions=["s3:ListBucket"]),
    "no statement": lambda policy: policy.pop("Statement"),
    "a version that is none": lambda policy: policy.update(Version="2026-01-01"),
}


@pytest.mark.parametrize("name", POLICY_CHANGES)
def test_a_mistake_in_a_policy_is_found(name: str) -> None:
    policy = copy.deepcopy(POLICIES["store"])
    POLICY_CHANGES[name](policy)
    assert find_faults(policy)


def test_audio_is_read_and_the_store_written_and_nothing_more() -> None:
    bucket = "arn:aws:s3:::example"
    assert list_allowed(POLICIES["store"]) == {
        ("s3:ListBucket", f"{bucket}-audio"),
        ("s3:ListBucket", f"{bucket}-features"),
        ("s3:GetObject", f"{bucket}-audio/*"),
        *(
            (f"s3:{action}", f"{bucket}-features/*")
            for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload")
        ),
    }


def test_roles_are_for_machines_of_ec2() -> None:
    trust = json.loads((FOLDER / "trust-policy.json").read_text())
    (statement,) = trust["Statement"]
    assert statement["Principal"] == {"Service": "ec2.amazonaws.com"}
    assert (statement["Effect"], statement["Action"]) == ("Allow", "sts:AssumeRole")


def test_no_policy_has_a_wildcard_for_actions() -> None:
    for policy in POLICIES.values():
        assert not [action for action, _ in list_allowed(policy) if "*" in action]
        anywhere = {action for action, resource in list_allowed(policy) if resource == "*"}
        assert all(action.startswith("ec2:Describe") for action in anywhere)
