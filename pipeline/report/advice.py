"""What to do about each reason for which tracks fail, in one line for the report."""

from __future__ import annotations

from pipeline.errors import Reason

ADVICE: dict[str, str] = {
    Reason.ID_TAKEN: "Embed this folder with --catalog NAME, which goes before its ids: these are of other files.",
    Reason.OBJECT_MISSING: "Upload these files, or take them out of the catalog, which names what is not there.",
    Reason.PERMISSION_DENIED: "Let the job's credentials read these objects (s3:GetObject), then run again.",
    Reason.FETCH_FAILED: "Run again: the next run tries these by itself. If they stay, look at the network.",
    Reason.EMPTY_FILE: "Upload these files again: they hold no bytes.",
    Reason.UNREADABLE: "Fetch these files anew from their source: what is there is no audio that can be decoded.",
    Reason.TRUNCATED: "Upload these files again: they end before the length that they state.",
    Reason.TOO_SHORT: "Leave them out of the catalog: the model needs at least 1,025 samples at 24 kHz (43 ms).",
    Reason.TOO_LONG: "Raise --max-duration-s with --retry-failures if these are wanted; tasks need the memory.",
    Reason.SILENT: "Check the transfer that made these files; where they are truly silent, leave them out.",
    Reason.NON_FINITE_AUDIO: "Export these files again: their samples hold NaN or infinity.",
    Reason.NON_FINITE_EMBEDDING: "Run with --precision float32 and --retry-failures: the model overflowed.",
    Reason.OUT_OF_MEMORY: "Run again with a smaller --batch-size, or on nodes with more memory.",
    Reason.EMBED_FAILED: "Run again, which tries these anew; if they stay, run one alone with --device cpu.",
    Reason.WORKER_CRASHED: "Look for these tracks in the Ray logs; then --retry-failures on larger nodes.",
}
"""One line for each value of ``failures.error_type``."""
