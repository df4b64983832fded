"""The file with operators' tokens."""

import hmac
import re
import stat
from pathlib import Path

from pipeline.command import InputError

SHORTEST = 16  # characters: 16 random hexadecimal digits cannot be guessed
DEFAULT_AUTHOR = "operator"
ROOT = 0  # user id
BYTE_ORDER_MARK = "\ufeff"


def read_tokens(path: Path) -> dict[str, str]:
    """Operators' names by token, of a file in UTF-8 with lines TOKEN or NAME:TOKEN.

    InputError where it cannot be read, others than its owner may, or a name or token in it is not valid. Byte-order
    marks, which editors put in front, and blanks and carriage returns, which they leave behind, are no part of either.
    """
    try:
        status, text = path.stat(), path.read_text(encoding="utf-8").replace(BYTE_ORDER_MARK, "")
    except (OSError, UnicodeError) as error:
        expected = "expected a file of tokens in UTF-8; set --token-file"
        raise InputError(f"{path} cannot be read ({error}), {expected}") from error
    if not is_private(status.st_mode, status.st_uid):
        remedy = f"chmod 600 {path}, or defaultMode: 0400 of a Kubernetes Secret"
        what = f"{path} has mode {stat.S_IMODE(status.st_mode):o}"
        raise InputError(f"{what}, expected 600: for its owner alone, or root's and readable to one group; {remedy}")
    lines = [[part.strip() for part in line.rpartition(":")] for line in text.splitlines() if line.strip()]
    if wrong := [name for name, colon, _ in lines if colon and not re.fullmatch(r"[\w.@ -]{1,40}", name)]:
        raise InputError(
            f"{path} has a name of {len(wrong[0])} characters, expected 1 to 40 of letters, digits, .@- and _"
        )
    tokens = {token: name or DEFAULT_AUTHOR for name, _, token in lines}
    remedy = "openssl rand -hex 32 makes one"
    if not tokens or any(len(token) < SHORTEST for token in tokens):
        raise InputError(f"{path} has no token or a short one, expected {SHORTEST} characters or more; {remedy}")
    if not all(token.isascii() and token.isprintable() for token in tokens):
        raise InputError(f"{path} has a token that no header can carry, expected printed ASCII characters; {remedy}")
    return tokens


def is_private(mode: int, owner: int) -> bool:
    """Whether a file's mode and owner keep it from others: for its owner alone, or root's and readable to its group.

    The latter is a Kubernetes Secret in a pod with an fsGroup: root's, 0440, whatever mode is asked for.
    """
    allowed = stat.S_IRGRP if owner == ROOT else 0
    return not mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed


def author_of(path: Path, given: str) -> str | None:
    """The name of the operator whose token this is, or None; a wrong one takes as long as a right one.

    InputError as in read_tokens.
    """
    tokens = read_tokens(path)
    matches = [name for token, name in tokens.items() if hmac.compare_digest(token.encode(), given.encode())]
    return matches[0] if matches else None
