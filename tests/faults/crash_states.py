"""Every state of a file system that POSIX allows a crash to leave, of the calls that a process was recorded to make.

A call on a file's bytes is durable after a sync of the file, one on names after a sync of their folder. Before, each by
itself may be kept or lost, whatever happened to the others, and a write also torn at a block's limit, or its size kept
and zeros in place of its bytes, as file systems leave it that journal sizes before data. ALICE (Pillai et al., "All
File Systems Are Not Created Equal", OSDI 2014) enumerates what some file systems do; this is what the standard allows.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

BLOCK: Final = 4096  # bytes that a disk writes whole
RANDOM_STATES: Final = 4  # at each point in time, besides the systematic ones

Fate = Literal["kept", "lost", "torn", "zeros"]


class Call(NamedTuple):
    """A call: on names in folders, on the bytes of a file, or a sync. Files and folders have numbers of a recording."""

    kind: Literal["name", "write", "truncate", "sync", "mark"]
    target: int  # the folder, or the file; of a sync either
    removed: str = ""  # names: what ends, in `target`
    added: str = ""  # names: what begins, in `into`
    into: int = 0
    entry: int = 0  # names: the file or folder that `added` is
    is_folder: bool = False
    offset: int = 0  # a write's; a truncation's size
    data: bytes = b""
    mark: str = ""


@dataclass
class Tree:
    """Folders and files by number; 0 is the folder that was recorded."""

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})
    files: dict[int, bytearray] = field(default_factory=dict)

    def copy(self) -> "Tree":
        return Tree(
            {number: dict(names) for number, names in self.folders.items()},
            {number: bytearray(data) for number, data in self.files.items()},
        )

    def content(self, number: int = 0, at: str = "") -> Iterator[tuple[str, bytes | None]]:
        """Paths that can be reached, with the bytes of files, and None for folders; sorted."""
        for name, entry in sorted(self.folders[number].items()):
            path = f"{at}/{name}" if at else name
            if entry in self.folders:
                yield path, None
                yield from self.content(entry, path)
            else:
                yield path, bytes(self.files[entry])

    def digest(self) -> bytes:
        found = hashlib.sha256()
        for path, data in self.content():
            found.update(repr((path, data)).encode())
        return found.digest()

    def write_to(self, folder: Path) -> None:
        """As a folder, which must not be there yet."""
        folder.mkdir(parents=True)
        for path, data in self.content():
            if data is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(data)


def read_tree(folder: Path) -> tuple[Tree, dict[int, int]]:
    """A folder as it is, and the number of each file and folder by its inode."""
    tree, numbers = Tree(), {folder.stat().st_ino: 0}

    def read(number: int, at: Path) -> None:
        for path in sorted(at.iterdir()):
            entry = tree.folders[number][path.name] = len(tree.folders) + len(tree.files)
            numbers[path.stat().st_ino] = entry
            if path.is_dir():
                tree.folders[entry] = {}
                read(entry, path)
            else:
                tree.files[entry] = bytearray(path.read_bytes())

    read(0, folder)
    return tree, numbers


def calls_of(lines: Sequence[Sequence[str]], below: Path, tree: Tree, numbers: dict[int, int]) -> list[Call]:
    """The calls of a recording that began with this tree, whose inodes have these numbers."""
    live, numbers, calls = tree.copy(), dict(numbers), []

    def place(path: str) -> tuple[int, str]:
        *folders, name = Path(path).relative_to(below).parts
        number = 0
        for folder in folders:
            number = live.folders[number][folder]
        return number, name

    for kind, *rest in lines:
        match kind:
            case "create" | "mkdir":
                folder, name = place(rest[0])
                entry = numbers[int(rest[1])] = len(live.folders) + len(
                    live.files
                )  # an inode may be another file's again
                if kind == "mkdir":
                    live.folders[entry] = {}
                else:
                    live.files[entry] = bytearray()
                call = Call("name", folder, added=name, into=folder, entry=entry, is_folder=kind == "mkdir")
            case "rename" | "link":
                (old, before), (new, after) = place(rest[0]), place(rest[1])
                removed = before if kind == "rename" else ""
                entry = live.folders[old][before]
                is_folder = entry in live.folders
                call = Call("name", old, removed=removed, added=after, into=new, entry=entry, is_folder=is_folder)
            case "remove":
                folder, name = place(rest[0])
                call = Call("name", folder, removed=name)
            case "write":
                call = Call("write", numbers[int(rest[0])], offset=int(rest[1]), data=bytes.fromhex(rest[2]))
            case "truncate":
                call = Call("truncate", numbers[int(rest[0])], offset=int(rest[1]))
            case "sync":
                call = Call("sync", numbers[int(rest[0])])
            case "mark":
                call = Call("mark", 0, mark=rest[0])
            case _:
                raise ValueError(f"{kind} is no call of a recording")
        apply(live, call, "kept")
        calls.append(call)
    return calls


def apply(tree: Tree, call: Call, fate: Fate) -> None:
    """What a call leaves in the tree, with this fate."""
    if fate == "lost" or call.kind in ("sync", "mark"):
        return
    if call.kind == "name":
        if call.removed:
            tree.folders[call.target].pop(call.removed, None)
        if call.added:
            tree.folders[call.into][call.added] = call.entry
            return
        return
    data = tree.files[call.target]
    if call.kind == "truncate":
        if call.offset <= len(data):
            del data[call.offset :]
        else:
            data.extend(bytes(call.offset - len(data)))
        return
    written = call.data
    if fate == "torn":  # up to a limit of blocks near its middle
        half = (call.offset + len(written) // 2) // BLOCK * BLOCK - call.offset
        written = written[: max(0, half)]
    if fate == "zeros":
        written = bytes(len(written))
    if len(data) < call.offset:
        data.extend(bytes(call.offset - len(data)))
    data[call.offset : call.offset + len(written)] = written


class State(NamedTuple):
    """What a crash may leave, and what had been promised by then."""

    tree: Tree
    promises: tuple[str, ...]
    why: str  # after which call, and what became of those that were not durable


def states(
    tree: Tree, calls: Sequence[Call], seed: int = 0, randomly: int = RANDOM_STATES, points: Sequence[int] | None = None
) -> Iterator[State]:
    """Each different state once: after each call, with each call that is not durable kept or lost, torn or zeros.

    randomly: states by chance, drawn by `seed`, after each call. points: after how many calls; all without.
    """
    draws, seen, base, durable = random.Random(seed), set[bytes](), _with_all(tree, calls), durable_after(calls)
    for point in range(len(calls) + 1) if points is None else points:
        done = calls[:point]
        pending = [index for index in range(point) if durable[index] > point]
        promises = tuple(call.mark for call in done if call.kind == "mark")
        for fates in fates_of(pending, done, draws, randomly):
            found = base.copy()
            for index, call in enumerate(done):
                apply(found, call, fates.get(index, "kept"))
            digest = hashlib.sha256(found.digest() + repr(promises).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                lost = ", ".join(f"{_name(done[i])} {fate}" for i, fate in sorted(fates.items()) if fate != "kept")
                yield State(found, promises, f"after {point} of {len(calls)} calls: {lost or 'all kept'}")


def undisturbed(tree: Tree, calls: Sequence[Call]) -> Tree:
    """What the calls leave where nothing crashes."""
    found = _with_all(tree, calls)
    for call in calls:
        apply(found, call, "kept")
    return found


def _with_all(tree: Tree, calls: Sequence[Call]) -> Tree:
    """The tree with every file and folder that calls make: a name may lead to one whose own creation is lost."""
    found = tree.copy()
    for call in calls:
        if call.added and call.is_folder:
            found.folders.setdefault(call.entry, {})
        elif call.added:
            found.files.setdefault(call.entry, bytearray())
    return found


def durable_after(calls: Sequence[Call]) -> list[int]:
    """For each call, after how many calls no crash can undo it any more; more than there are where one always can."""
    never = len(calls) + 1
    synced: dict[int, int] = {}  # the next sync of each file and folder, from the end backwards
    found = []
    for index in range(len(calls) - 1, -1, -1):
        call = calls[index]
        places = {call.target, call.into} if call.added else {call.target}
        if call.kind in ("sync", "mark"):
            found.append(index + 1)
        else:
            found.append(max(synced.get(place, never) for place in places))
        if call.kind == "sync":
            synced[call.target] = index + 1
    return found[::-1]


def fates_of(
    pending: Sequence[int], done: Sequence[Call], draws: random.Random, randomly: int
) -> Iterator[dict[int, Fate]]:
    """What may become of the calls that are not durable: all kept, none, one, all but one, bytes, names, by chance."""
    writes = [index for index in pending if done[index].kind == "write"]
    kept: dict[int, Fate] = dict.fromkeys(pending, "kept")
    lost: dict[int, Fate] = dict.fromkeys(pending, "lost")
    yield kept
    yield lost
    fates: tuple[Fate, ...] = ("lost", "torn", "zeros")
    for fate in fates:
        yield {**kept, **dict.fromkeys(writes, fate)}
    yield {index: "kept" if index in writes else "lost" for index in pending}
    for index in pending:
        yield {**lost, index: "kept"}
        for fate in fates if index in writes else fates[:1]:
            yield {**kept, index: fate}
    for _ in range(randomly if len(pending) > 1 else 0):
        yield {
            index: draws.choice(("kept", "lost", "torn", "zeros") if index in writes else ("kept", "lost"))
            for index in pending
        }


def _name(call: Call) -> str:
    if call.kind == "name":
        return f"{call.removed or 'new'} -> {call.added or 'nothing'}"
    return f"{call.kind} of {len(call.data)} bytes at {call.offset}"
