"""The listening socket of the HTTP server."""

from socket import AF_INET, AF_INET6, create_server, socket

from pipeline.command import InputError


def listen(host: str, port: int) -> socket:
    """A listening socket; port 0 takes a free port; InputError when the address or port cannot be used."""
    try:
        return create_server((host, port), family=AF_INET6 if ":" in host else AF_INET, backlog=1024)
    except (OSError, OverflowError) as error:  # OverflowError: the number is not a port's
        reason = getattr(error, "strerror", None) or error
        remedy = "set --port or --host; python -m service.doctor finds a free one"
        raise InputError(f"{host} port {port} cannot be used ({reason}), expected a free one; {remedy}") from error
