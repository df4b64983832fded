"""The worker's HTTP server under load: as many scrapes and views as a week has, and somebody who guesses tokens."""

import asyncio
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processes import command, descendants, is_server, losses, small_shards, start, wait_until

REQUESTS: Final = 200_000  # a scrape every 10 s for a week is 60,000; the page asks for four things every few seconds
GUESSES: Final = 1_000  # a second
GUESSED: Final = 0.05  # of the requests: so many more are made while tokens are guessed
CLIENTS: Final = 16  # at a time
WARM: Final = 0.2  # of the requests, after which memory is to stay as it is
DROPPED: Final = 0.02  # of the views that are made while tokens are guessed, that may get no answer
# Of memory that is still called flat; the worker gives back the holes in its heap when they are a quarter of it.
GROWTH: Final = {"worker": 1.3, "server": 1.05}
VIEWED: Final = ("/metrics", "/metrics", "/metrics", "/", "/api/status", "/api/status", "/api/curve", "/filters.png")


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of it."""

    requests: int
    seconds: float  # of the first part, without guesses
    guessing_seconds: float
    dropped: int  # connections, as the server does when there are more than it keeps
    guesses: int
    admitted: int  # guesses that were compared with the tokens: answered by 401, the others by 429
    memory: dict[str, tuple[int, int]]  # bytes of each process, warm and at the end
    faults: tuple[str, ...]


async def ask(port: int, path: str, token: str = "") -> tuple[int, bytes]:
    """Status and body of a request on a connection of its own; POST with a token."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{'POST' if token else 'GET'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        if token:
            head += f"Authorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
        writer.write((head + "\r\n" + ("{}" if token else "")).encode())
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")  # type: ignore[assignment]
    expected = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)  # type: ignore[arg-type]
    assert expected and int(expected[1]) == len(body), head
    return int(head.split()[1]), body


async def views(port: int, count: int, found: Counter[str]) -> None:
    """So many requests for what is to be seen, by several clients at once."""

    async def client(number: int) -> None:
        for each in range(number, count, CLIENTS):
            try:
                status, body = await ask(port, path := VIEWED[each % len(VIEWED)])
                found["answered" if status == 200 and body else f"{path} is answered by {status}"] += 1
            except OSError:
                found["dropped"] += 1

    await asyncio.gather(*map(client, range(CLIENTS)))


async def guesses(port: int, found: Counter[int]) -> None:
    """Wrong tokens, as many a second as there are to be, until cancelled."""

    async def guess() -> None:
        status, _ = await ask(port, "/api/stop", secrets.token_hex(32))
        found[status] += 1

    async with asyncio.TaskGroup() as group:
        begun, sent = time.monotonic(), 0
        while True:
            for _ in range(min(50, int((time.monotonic() - begun) * GUESSES) - sent)):
                group.create_task(guess())
                sent += 1
            await asyncio.sleep(0.02)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return 4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[1])


async def besiege(port: int, requests: int, pids: dict[str, int]) -> Load:
    """Views, then views and guesses at once; twice, the first time to be warm."""
    viewed, guessed = Counter[str](), Counter[int]()
    seconds = guessing_seconds = 0.0
    used: list[dict[str, int]] = []
    for share in (WARM, 1 - WARM):
        begun = time.monotonic()
        await views(port, int(share * requests), viewed)
        guessed_since = time.monotonic()
        guessing = asyncio.create_task(guesses(port, guessed))
        await views(port, int(share * GUESSED * requests), viewed)
        guessing.cancel()
        await asyncio.gather(guessing, return_exceptions=True)
        seconds += guessed_since - begun
        guessing_seconds += time.monotonic() - guessed_since
        used.append({name: resident(pid) for name, pid in pids.items()})
    memory = {name: (used[0][name], used[1][name]) for name in pids}
    faults = [f"{count:,} times: {what}" for what, count in viewed.items() if what not in ("answered", "dropped")]
    if viewed["dropped"] > DROPPED * GUESSED * requests:
        faults.append(f"{viewed['dropped']:,} requests got no answer")
    if wrong := {status: count for status, count in guessed.items() if status not in (401, 429)}:
        faults.append(f"wrong tokens were answered by {wrong}")
    if guessed[401] > 10 * (guessing_seconds + 2):
        faults.append(f"{guessed[401]:,} tokens were tried in {guessing_seconds:.0f} s, expected at most 10 a second")
    faults += [
        f"memory of the {name} grew from {a:,} to {b:,}" for name, (a, b) in memory.items() if b > GROWTH[name] * a
    ]
    return Load(
        requests=viewed["answered"],
        seconds=seconds,
        guessing_seconds=guessing_seconds,
        dropped=viewed["dropped"],
        guesses=sum(guessed.values()),
        admitted=guessed[401],
        memory=memory,
        faults=tuple(faults),
    )


def load(folder: Path, requests: int = REQUESTS) -> Load:
    """A worker that trains, besieged; then an operator with the right token is heard at once."""
    token_file, token = folder / "token", secrets.token_hex(32)
    token_file.touch(0o600)
    token_file.write_text(f"alice:{token}\n")
    out = folder / "run"
    options = ("--epochs", "1000000", "--checkpoint-every", "100", "--token-file", str(token_file))
    worker = start(command(small_shards(folder), out, *options), OMP_NUM_THREADS="1")
    said = list[str]()
    try:
        assert worker.stdout
        line = next(said_line for said_line in kept(worker.stdout, said) if said_line.startswith("serving "))
        port = int(line.split("/,")[0].rpartition(":")[2])
        wait_until(lambda: asyncio.run(ask(port, "/filters.png"))[0] == 200, worker)
        (server,) = (pid for pid in descendants(worker.pid) if is_server(pid))
        trained = max(losses(out))
        found = asyncio.run(besiege(port, requests, {"worker": worker.pid, "server": server}))
        status, _ = asyncio.run(ask(port, "/api/stop", token))
        faults = [f"the right token is answered by {status}"] if status != 200 else []
        said += worker.stdout.readlines()
        if worker.wait(60) != 0:
            faults.append(f"status {worker.returncode}: {said[-3:]}")
        if (notices := sum("wrong tokens" in each for each in said)) != 1:
            faults.append(f"guessed tokens are said {notices} times, expected once")
        if max(losses(out)) <= trained:
            faults.append("nothing was trained meanwhile")
        return Load(**{**vars(found), "faults": (*found.faults, *faults)})
    finally:
        worker.kill()


def kept(lines: Iterator[str], into: list[str]) -> Iterator[str]:
    """The lines, each put by too."""
    for line in lines:
        into.append(line)
        yield line
