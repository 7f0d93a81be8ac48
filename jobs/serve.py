"""Serve similarity search over a store: an HTTP service and its page."""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.arguments import OneLineParser, add_storage_option, parse_resolutions, run_or_explain, whole_number
from jobs.program import run_script
from pipeline.errors import UsageError
from pipeline.service.port import claim_port

if TYPE_CHECKING:
    from pipeline.service.state import ServiceSettings

TOKEN_VARIABLE = "MUSICFM_SERVE_TOKEN"


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command: 0 once it was told to end, 2 for a mistake in the call."""
    parser = build_parser(program)
    flags = parser.parse_args(arguments)

    def run() -> int:
        claim_port(flags.host, flags.port)  # before what takes seconds: it may be taken
        with parser.loading("PyTorch, Ray and the web server"):
            from pipeline.service.serve import run_service

        settings = read_settings(flags)

        def announce(url: str) -> None:
            if settings.access.token is None and not settings.access.is_local:
                logging.getLogger("serve").warning("anyone who reaches %s may ask: there is no token", url)
            line = {
                "url": url,
                "docs": f"{url}docs",
                "store": flags.store,
                "token": settings.access.token is not None,
            }
            print(json.dumps(line), flush=True)

        run_service(settings, flags.host, flags.port, flags.replicas, announce)
        return 0

    return run_or_explain(parser, run)


def build_parser(program: str | None = None) -> OneLineParser:
    """Return the parser of the command's flags."""
    parser = OneLineParser(program, __doc__, "--store ~/features --checkpoint msd")
    parser.add_argument("--store", required=True, metavar="URL", help="feature store with an index")
    parser.add_argument("--recipe", metavar="ID", help="needed where several recipes are indexed")
    parser.add_argument(
        "--resolution",
        type=parse_resolutions,
        default=(),
        metavar="NAMES",
        help="comma-separated; the first answers by default (default: all that are indexed)",
    )
    parser.add_argument("--cache", metavar="DIR", help="for copies of an object store's indexes")
    parser.add_argument("--poll-interval-s", type=float, default=5.0, help="between looks for a newer index")
    network = parser.add_group("the network")
    network.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all of this machine's"
    )
    network.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    network.add_argument("--replicas", type=int, default=1, help="processes that answer")
    network.add_argument("--token-file", metavar="FILE", help=f"bearer token; or the variable {TOKEN_VARIABLE}")
    audio = parser.add_group("queries by audio")
    audio.add_argument("--checkpoint", metavar="NAME_OR_URL", help="msd, fma, or any .pt or .safetensors")
    audio.add_argument("--stats", metavar="URL", help="normalisation file, where it is not beside the checkpoint")
    audio.add_argument("--device", choices=("cuda", "cpu"), help="by default a GPU if there is one")
    audio.add_argument("--max-upload-mb", type=whole_number(1, 2**20), default=50, help="longer files are refused")
    audio.add_argument("--max-duration-s", type=float, default=1200.0, help="longer music is refused")
    storage = parser.add_group("storage (credentials come from the standard places, such as AWS_*)")
    add_storage_option(storage, "--storage-option", "the store")
    add_storage_option(storage, "--audio-option", "the audio")
    return parser


def read_settings(flags: argparse.Namespace) -> ServiceSettings:
    """Turn parsed flags into settings.

    Raises:
        UsageError: The token cannot be read, or a number makes no sense.
    """
    for name in ("replicas", "max_upload_mb", "max_duration_s", "poll_interval_s"):
        if not getattr(flags, name) > 0:
            raise UsageError(
                f"expected a number over 0 for --{name.replace('_', '-')}, found {getattr(flags, name)}"
            )
    from pipeline.location import StoreLocation
    from pipeline.service.guard import Access
    from pipeline.service.state import ServiceSettings

    return ServiceSettings(
        store=StoreLocation(flags.store, dict(flags.storage_option)),
        resolutions=flags.resolution,
        recipe=flags.recipe,
        cache=flags.cache,
        audio_options=dict(flags.audio_option),
        checkpoint=flags.checkpoint,
        stats=flags.stats,
        device=flags.device,
        num_threads=max(1, (os.cpu_count() or 1) // flags.replicas),
        access=Access(read_token(flags.token_file), is_loopback(flags.host)),
        max_upload_bytes=flags.max_upload_mb * 2**20,
        max_duration_s=flags.max_duration_s,
        poll_interval_s=flags.poll_interval_s,
    )


def read_token(path: str | None) -> str | None:
    """Return the token of a file, or else of the environment; None where there is none.

    Raises:
        UsageError: The file cannot be read, or the token is none that a header can carry.
    """
    try:
        token = Path(path).read_text() if path else os.environ.get(TOKEN_VARIABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the token in {path}: {error}") from error
    if token is None:
        return None
    token = token.strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        where = path or TOKEN_VARIABLE
        raise UsageError(
            f"expected a token of 16 or more letters, digits or marks in {where}; openssl rand -hex 24 makes one"
        )
    return token


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own, which nobody else reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


if __name__ == "__main__":
    run_script(main)
