"""Audio columns of Parquet files: structs of ``bytes`` and ``path``, as Hugging Face data sets keep audio.

Pages of a column cannot be read one value at a time: the smallest piece is what a row group holds of the column,
its column chunk. Whoever reads it has all of the row group's audio (Apache Parquet format, README.md, "File
format" and "Metadata").
"""

from __future__ import annotations

import io
import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Options, open_filesystem

FOOTER_BYTES = 2**16  # read at first: what nearly every footer fits in

_TAIL_BYTES = 8  # the footer's length, and b"PAR1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Where a row group's values of one leaf column lie in the file.

    Args:
        group: Number of the row group.
        leaf: The column's path in the schema, such as ``audio.bytes``.
        start: Its first byte.
        stop: The byte after its last.
        num_rows: Of the row group.
    """

    group: int
    leaf: str
    start: int
    stop: int
    num_rows: int


class Pieces(io.RawIOBase):
    """A file of which some ranges are at hand.

    Args:
        pieces: First byte and content of each range, in order.
    """

    def __init__(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        super().__init__()
        self._starts = [start for start, _ in pieces]
        self._bodies = [memoryview(body) for _, body in pieces]
        self._size_bytes = max((start + len(body) for start, body in pieces), default=0)
        self._position = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that one may go to any place in it."""
        return True

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self._size_bytes)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return bytes of the range that holds the present place; none where no range does."""
        number = bisect_right(self._starts, self._position) - 1
        if number < 0:
            return b""
        begin = self._position - self._starts[number]
        body = self._bodies[number][begin : None if size < 0 else begin + size]
        self._position += len(body)
        return bytes(body)


def read_footer(url: str, options: Options | None = None, tail: bytes | None = None) -> pq.FileMetaData:
    """Read what a Parquet file says of itself: one request where its footer is not a long one.

    Args:
        url: URL or path.
        options: File system options.
        tail: The file's last bytes, where they are at hand.

    Raises:
        OSError: It cannot be read.
        pyarrow.ArrowException: It is no Parquet file.
    """
    fs, path = open_filesystem(url, options)
    if tail is None:
        tail = fs.cat_file(path, start=-FOOTER_BYTES)
    footer_bytes = int.from_bytes(tail[-_TAIL_BYTES:-4], "little") + _TAIL_BYTES
    if tail.endswith(b"PAR1") and footer_bytes > len(tail) >= FOOTER_BYTES:
        tail = fs.cat_file(path, start=-footer_bytes)
    return pq.read_metadata(pa.BufferReader(tail))


def find_audio_column(metadata: pq.FileMetaData) -> str | None:
    """Return the name of the column that holds audio; None where there is none.

    It is a struct with binary ``bytes``. Where the file says what Hugging Face's library takes its columns for
    (key ``huggingface``), it is one of the type Audio; images are such structs too.
    """
    schema = metadata.schema.to_arrow_schema()
    names = [field.name for field in schema if _holds_bytes(field.type)]
    features = _read_features(metadata)
    if features:
        names = [name for name in names if features.get(name, {}).get("_type") == "Audio"]
    elif "audio" not in names and len(names) > 1:
        names = []
    if len(names) > 1:
        names.sort(key=lambda name: name != "audio")
        logger.warning("of the audio columns %s only %s is read", ", ".join(names), names[0])
    return names[0] if names else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    values = kind.field("bytes").type
    return bool(pa.types.is_binary(values) or pa.types.is_large_binary(values))


def _read_features(metadata: pq.FileMetaData) -> dict[str, dict[str, object]]:
    try:
        features = json.loads((metadata.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def list_chunks(metadata: pq.FileMetaData, leaf: str) -> list[Chunk]:
    """List where each row group's values of a leaf column lie; empty where there is no such column."""
    chunks = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in (group.column(position) for position in range(group.num_columns)):
            if column.path_in_schema == leaf:
                start = column.data_page_offset
                if column.dictionary_page_offset:  # 0 of some writers where there is none
                    start = min(start, column.dictionary_page_offset)
                chunks.append(Chunk(number, leaf, start, start + column.total_compressed_size, group.num_rows))
    return chunks


def read_chunk(pieces: Pieces, metadata: pq.FileMetaData, chunk: Chunk) -> Iterator[pa.Scalar]:
    """Yield a chunk's values; those before a damaged page where one is.

    Args:
        pieces: Hold the chunk's bytes.
        metadata: The file's.
        chunk: Which.

    Raises:
        OSError: The next value cannot be read; nor can the later ones.
    """
    file = pq.ParquetFile(pieces, metadata=metadata, pre_buffer=False)
    num_read = 0
    try:
        # One by one: values of a few bytes to many MiB, of which a batch would hold too many.
        for batch in file.iter_batches(1, [chunk.group], [chunk.leaf], use_threads=False):
            yield batch.column(0).field(0)[0]
            num_read += 1
    except (pa.ArrowException, OSError) as error:
        detail = " ".join(str(error).split())
        raise OSError(f"row group {chunk.group} is damaged after {num_read} rows: {detail}") from error
