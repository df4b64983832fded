"""Checks of what the HTTP server needs: open files and a port."""

import os
import resource
import sys
from dataclasses import dataclass
from typing import Final

from pipeline.command import InputError
from service.diagnostics.finding import Finding
from service.web.listener import listen
from service.web.uvicorn_limits import CONNECTIONS

# Pipes, sockets, a few of each library; shards are mapped and their files closed. On a CPU 64 are enough for a run.
LEAST_FILES: Final = 64
WORKER_FILES: Final = 256  # with room for CUDA, NCCL and compilers
SERVER_FILES: Final = CONNECTIONS + 64  # the server raises its own soft limit to the hard one


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """How many files a process may have open."""

    soft: int
    hard: int


def find_descriptors() -> Descriptors:
    """The limits of this process, which its children inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    return Descriptors(soft=sys.maxsize if soft == unlimited else soft, hard=sys.maxsize if hard == unlimited else hard)


def judge_descriptors(descriptors: Descriptors) -> Finding:
    """The worker needs the soft limit; its HTTP server raises its own to the hard one."""
    found = f"{_count(descriptors.soft)} open files, {_count(descriptors.hard)} if raised"
    if descriptors.soft < WORKER_FILES:
        follows = f"a worker may need {WORKER_FILES}, and fails when it cannot open one"
        remedy = (
            f"ulimit -n {min(descriptors.hard, 4096)}"
            if descriptors.hard >= WORKER_FILES
            else "raise the hard limit (nofile)"
        )
        return Finding("failed" if descriptors.soft < LEAST_FILES else "warning", "files", found, follows, remedy)
    if descriptors.hard < SERVER_FILES:
        follows = (
            f"the page, metrics and control serve {CONNECTIONS} connections with {SERVER_FILES}; others have to wait"
        )
        return Finding(
            "warning", "files", found, follows, "raise the hard limit (nofile in limits.conf, --ulimit in Docker)"
        )
    return Finding("ok", "files", found)


def _count(number: int) -> str:
    return "unlimited" if number == sys.maxsize else f"{number:,}"


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where the page, metrics and control are to be served."""

    host: str
    port: int
    troubles: dict[int, str]  # why a port cannot be used
    free: int | None = None  # the next port that can be, where one cannot


def find_ports(host: str, port: int, count: int = 1) -> Ports:
    """count: of ports, one for each process of this host, from `port` on; each is opened and closed at once."""
    wanted = range(port, port + count) if port else (0,)
    troubles = {each: reason for each in wanted if (reason := _port_error(host, each))}
    free = None
    if troubles:
        starts = range(max(port, 1023) + 1, min(port + 100, 65535) - count + 1)
        free = next((s for s in starts if not any(_port_error(host, each) for each in range(s, s + count))), None)
    return Ports(host=host, port=port, troubles=troubles, free=free)


def _port_error(host: str, port: int) -> str:
    try:
        listen(host, port).close()
    except InputError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno and cause.errno > 0:  # negative: the host name is not found
            return os.strerror(cause.errno)
        return getattr(cause, "strerror", None) or str(cause)
    return ""


def judge_ports(ports: Ports) -> Finding:
    """A port that cannot be used is a failure, because the worker would not start."""
    if not ports.troubles:
        found = f"{ports.host} port {ports.port} is free" if ports.port else f"{ports.host}, any free port"
        return Finding("ok", "port", found)
    port, reason = next(iter(ports.troubles.items()))
    found = f"{ports.host} port {port} cannot be used ({reason})"
    follows = "service.train does not start; whoever has the port may be another run"
    if ports.free is None:
        flags = ("--host 127.0.0.1",) if ports.host != "127.0.0.1" else ()
        remedy = "use --host 127.0.0.1, or another address of this machine"
        return Finding("failed", "port", found, "service.train does not start", remedy, flags)
    return Finding("failed", "port", found, follows, f"use --port {ports.free}", (f"--port {ports.free}",))
