import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from pipeline.location import delta_storage_options
from pipeline.store import retry
from pipeline.store.retry import commit_once, retry_broken
from tests.fault_proxy import Fault, run_fault_proxy
from tests.processes import find_free_ports
from tests.s3_server import STORE, STORE_BUCKET, S3Server

ROWS = pa.table({"number": [1, 2, 3]})
BROKEN = OSError("Generic S3 error - HTTP error: error sending request")


def create(url: str, options: dict[str, str] | None = None) -> DeltaTable:
    return DeltaTable.create(url, ROWS.schema, storage_options=delta_storage_options(options))


def read_numbers(table: DeltaTable) -> list[int]:
    return sorted(table.to_pyarrow_table().column("number").to_pylist())


@pytest.mark.parametrize("kind", [Fault.RESET, Fault.LOST_ANSWER, Fault.SHORT_BODY])
def test_a_commit_is_made_once_whatever_breaks(kind: Fault, s3_server: S3Server, tmp_path: Path) -> None:
    url = f"s3://{STORE_BUCKET}/retry-{kind}"
    there = create(url, s3_server.options(STORE))
    with run_fault_proxy(s3_server.url, tmp_path / "requests.log", 1.0, [kind], max_per_key=1) as proxy:
        options = delta_storage_options(s3_server.options(STORE, proxy.url))
        table = retry_broken(partial(DeltaTable, url, storage_options=options))
        commit_once(table, partial(write_deltalake, table, ROWS, mode="append"), {"who": "me"})
        failed = {request.path.rpartition("/")[2] for request in proxy.read_requests() if request.fault}
    assert table.version() == 1
    assert f"{1:020d}.json" in failed or kind == Fault.SHORT_BODY
    there.update_incremental()
    assert there.version() == 1
    assert [commit.get("who") for commit in there.history()] == ["me", None]
    assert read_numbers(there) == [1, 2, 3]


def test_a_listing_cut_short_is_asked_for_again(s3_server: S3Server, tmp_path: Path) -> None:
    url = f"s3://{STORE_BUCKET}/listing"
    create(url, s3_server.options(STORE))
    kinds = [Fault.SHORT_BODY]
    with run_fault_proxy(s3_server.url, tmp_path / "requests.log", 1.0, kinds, max_per_key=1) as proxy:
        options = delta_storage_options(s3_server.options(STORE, proxy.url))
        assert retry_broken(partial(DeltaTable.is_deltatable, url, options))
        assert [request.fault for request in proxy.read_requests()] == [Fault.SHORT_BODY, None]


@pytest.mark.parametrize("error", [BROKEN, CommitFailedError("somebody was first")])
def test_a_commit_that_stands_is_recognised(error: Exception, tmp_path: Path) -> None:
    table = create(str(tmp_path))

    def commit(commit_properties: Any) -> None:
        write_deltalake(str(tmp_path), ROWS, mode="append", commit_properties=commit_properties)
        raise error

    commit_once(table, commit, {}, Transaction("app", 1))
    assert (table.version(), table.transaction_version("app")) == (1, 1)
    assert read_numbers(table) == [1, 2, 3]


@pytest.mark.parametrize("error", [BROKEN, CommitFailedError("somebody was first")])
def test_another_writers_commit_is_not_taken_for_ones_own(error: Exception, tmp_path: Path) -> None:
    table = create(str(tmp_path))

    def lose(commit_properties: Any) -> None:
        other = DeltaTable(tmp_path)
        commit_once(other, partial(write_deltalake, other, ROWS, mode="append"), {})
        raise error

    with pytest.raises(CommitFailedError, match="another writer has made version 1"):
        commit_once(table, lose, {})
    assert read_numbers(DeltaTable(tmp_path)) == [1, 2, 3]


def test_a_refused_commit_is_not_tried_again(tmp_path: Path) -> None:
    table = create(str(tmp_path))
    calls = []

    def refuse(commit_properties: Any) -> None:
        calls.append(commit_properties)
        raise CommitFailedError("no") if len(calls) == 1 else AssertionError

    with pytest.raises(CommitFailedError, match=r"^no$"):
        commit_once(table, refuse, {})


def test_it_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_FOR_S", 0.5)
    calls = []

    def fail() -> None:
        calls.append(time.monotonic())
        raise BROKEN

    with pytest.raises(OSError, match="HTTP error"):
        retry_broken(fail)
    assert len(calls) > 2
    assert calls[-1] - calls[0] < 0.5


def test_a_server_that_is_not_there_is_not_waited_for() -> None:
    options = {"key": "k", "secret": "s", "endpoint_url": f"http://127.0.0.1:{find_free_ports(1)[0]}"}
    calls = []

    def look() -> bool:
        calls.append(1)
        return DeltaTable.is_deltatable("s3://bucket/table", delta_storage_options(options))

    with pytest.raises(OSError, match="Connection refused"):
        retry_broken(look)
    assert calls == [1]
