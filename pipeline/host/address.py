"""How an address is written."""


def host_and_port(host: str, port: int) -> str:
    """HOST:PORT as URLs and Prometheus have it: an IPv6 address in brackets, for it has colons of its own."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
