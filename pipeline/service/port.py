"""The port that the service listens on: whether it is to be had, told before anything slow is loaded."""

from __future__ import annotations

import socket

from pipeline.errors import UsageError


def claim_port(host: str, port: int) -> int:
    """Return the port to listen on, after a look whether that is possible.

    Raises:
        UsageError: It is taken, or not ours to take; or there is no such address here.
    """
    try:
        if not 0 <= port < 2**16:
            raise OverflowError("expected a port from 0 to 65535")
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host} port {port}: {detail}; choose others by --host and --port"
        ) from error
