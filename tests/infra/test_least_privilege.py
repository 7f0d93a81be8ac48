"""What commands really ask of object storage is what infra/aws/store-policy.json allows: no less, and no more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from jobs import build_index, check_store, embed_catalog, maintain_store
from tests.corpus import encode_clip, load_music
from tests.fault_proxy import Request, run_fault_proxy
from tests.s3_server import AUDIO, AUDIO_BUCKET, STORE, STORE_BUCKET, S3Server

POLICY = Path(__file__).resolve().parents[2] / "infra" / "aws" / "store-policy.json"
PLACES = {"example-audio": AUDIO_BUCKET, "example-features": STORE_BUCKET}


def name_permission(request: Request) -> tuple[str, str]:
    """Return the IAM action that a request needs, and its bucket (S3 API reference, "required permissions")."""
    url = urlsplit(request.path)
    bucket, _, key = url.path.lstrip("/").partition("/")
    query = parse_qs(url.query, keep_blank_values=True)
    if not key:
        on_bucket = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
        action = "DeleteObject" if request.method == "POST" and "delete" in query else on_bucket[request.method]
        if not bucket:
            action = "ListAllMyBuckets"
        elif "location" in query:
            action = "GetBucketLocation"
    elif request.method == "DELETE":
        action = "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    else:
        action = {"GET": "GetObject", "HEAD": "GetObject", "PUT": "PutObject", "POST": "PutObject"}[request.method]
    return f"s3:{action}", bucket


def list_allowed() -> set[tuple[str, str]]:
    allowed = set()
    for statement in json.loads(POLICY.read_text())["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        buckets = {PLACES[resource.removeprefix("arn:aws:s3:::").removesuffix("/*")] for resource in resources}
        allowed |= {(action, bucket) for action in actions for bucket in buckets}
    return allowed


def as_flags(name: str, options: dict[str, str]) -> list[str]:
    return [f"{name}={key}={value}" for key, value in options.items()]


@pytest.mark.slow
@pytest.mark.ray
def test_a_store_is_made_refreshed_indexed_and_maintained_with_these_rights(
    s3_server: S3Server, tiny_checkpoint: Path, tmp_path: Path, local_ray: None
) -> None:
    for number in range(3):
        encode_clip(tmp_path / f"{number}.wav", load_music(seconds=1.0 + number, sample_rate=24_000), 24_000)
    s3_server.open(AUDIO).put(str(tmp_path / "*.wav"), f"{AUDIO_BUCKET}/rights/")
    store = f"s3://{STORE_BUCKET}/rights"
    with run_fault_proxy(s3_server.url, tmp_path / "requests") as proxy:
        storage = as_flags("--storage-option", s3_server.options(STORE, proxy.url))
        audio = as_flags("--audio-option", s3_server.options(AUDIO, proxy.url))
        embed = ["--audio", f"s3://{AUDIO_BUCKET}/rights", "--checkpoint", str(tiny_checkpoint), "--layers", "2"]
        calls: list[tuple[object, Sequence[str]]] = [
            (embed_catalog, [*embed, *audio, "--limit", "2"]),
            (embed_catalog, [*embed, *audio]),
            (build_index, ["--cache", str(tmp_path / "cache")]),
            (maintain_store, ["--vacuum", "0"]),
            (check_store, ["--deep"]),
        ]
        for command, flags in calls:
            assert command.main(["--store", store, *storage, *flags]) == 0  # type: ignore[attr-defined]
        asked = {name_permission(request) for request in proxy.read_requests()}
    assert asked <= list_allowed()
    # Uploads of several parts are for objects larger than these, and taking one back for those that fail.
    assert list_allowed() - asked <= {("s3:AbortMultipartUpload", STORE_BUCKET)}


@pytest.mark.parametrize(
    ("method", "path", "permission"),
    [
        ("GET", "/b?list-type=2&prefix=x", ("s3:ListBucket", "b")),
        ("POST", "/b?delete", ("s3:DeleteObject", "b")),
        ("DELETE", "/b/k?uploadId=1", ("s3:AbortMultipartUpload", "b")),
        ("PUT", "/b/k?partNumber=1&uploadId=1", ("s3:PutObject", "b")),
        ("PUT", "/b", ("s3:CreateBucket", "b")),
        ("GET", "/", ("s3:ListAllMyBuckets", "")),
    ],
)
def test_a_request_needs_one_permission(method: str, path: str, permission: tuple[str, str]) -> None:
    assert name_permission(Request(method, path, None)) == permission
