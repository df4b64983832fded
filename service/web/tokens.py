"""The file with operators' tokens."""

import hmac
import re
import stat
from pathlib import Path

from pipeline.command import InputError

SHORTEST = 16  # characters: 16 random hexadecimal digits cannot be guessed
DEFAULT_AUTHOR = "operator"


def read_tokens(path: Path) -> dict[str, str]:
    """Operators' names by token, of a file with lines TOKEN or NAME:TOKEN.

    InputError where it cannot be read, its mode gives group or others access, or a name or token in it is not valid.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path} cannot be read ({error}), expected a file of tokens; set --token-file") from error
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(f"{path} has mode {stat.S_IMODE(mode):o}, expected 600: for its owner alone; chmod 600 {path}")
    lines = [[part.strip() for part in line.rpartition(":")] for line in text.splitlines() if line.strip()]
    if wrong := [name for name, colon, _ in lines if colon and not re.fullmatch(r"[\w.@ -]{1,40}", name)]:
        raise InputError(
            f"{path} has a name of {len(wrong[0])} characters, expected 1 to 40 of letters, digits, .@- and _"
        )
    tokens = {token: name or DEFAULT_AUTHOR for name, _, token in lines}
    if not tokens or any(len(token) < SHORTEST for token in tokens):
        remedy = "openssl rand -hex 32 makes one"
        raise InputError(f"{path} has no token or a short one, expected {SHORTEST} characters or more; {remedy}")
    return tokens


def author_of(path: Path, given: str) -> str | None:
    """The name of the operator whose token this is, or None; a wrong one takes as long as a right one.

    InputError as in read_tokens.
    """
    tokens = read_tokens(path)
    matches = [name for token, name in tokens.items() if hmac.compare_digest(token.encode(), given.encode())]
    return matches[0] if matches else None
