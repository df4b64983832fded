"""The operators' token file: whose it may be, what editors and mounts make of it, and what is refused."""

import codecs
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT
from pipeline.command import InputError
from service.web.tokens import author_of, is_private, read_tokens

ALICE, OPERATOR = "0123456789abcdef-alice", "0123456789abcdef-operator"


def token_file(folder: Path, data: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)
    return path


def test_a_file_is_private_when_nobody_but_its_owner_or_one_group_by_roots_leave_can_read_it() -> None:
    for mode in range(0o1000):
        group, others = oct(mode + 0o1000)[-2:]
        assert is_private(0o100000 | mode, 1000) == (group == others == "0")
        assert is_private(0o100000 | mode, 0) == (group in "04" and others == "0")


@pytest.mark.skipif(os.getuid() != 0, reason="giving files away needs root")
def test_a_kubernetes_secret_is_taken_and_others_files_that_a_group_can_read_are_not(tmp_path: Path) -> None:
    """A Secret in a pod with an fsGroup: links, and root's file of mode 0440 for that group."""
    folder = tmp_path / "..2026_11_26"
    folder.mkdir()
    secret = token_file(folder, f"alice:{ALICE}\n", 0o440)
    (tmp_path / "..data").symlink_to(folder.name)
    (tmp_path / "token").symlink_to("..data/tokens")
    os.chown(secret, 0, 1000)
    assert read_tokens(tmp_path / "token") == {ALICE: "alice"}
    for mode in (0o444, 0o460, 0o441):
        secret.chmod(mode)
        with pytest.raises(InputError, match=f"mode {mode:o}, expected 600"):
            read_tokens(tmp_path / "token")
    secret.chmod(0o440)
    os.chown(secret, 1000, 1000)
    with pytest.raises(InputError, match="mode 440, expected 600"):
        read_tokens(tmp_path / "token")


@pytest.mark.parametrize(
    "data",
    [
        f"alice:{ALICE}\n{OPERATOR}\n",
        f"alice:{ALICE}\n{OPERATOR}",
        f"\n alice : {ALICE} \t\n\n{OPERATOR}\xa0\n \n",
        f"alice:{ALICE}\r\n{OPERATOR}\r\n\r\n",
        f"alice:{ALICE}\r{OPERATOR}\r",
        f"alice:{ALICE}\n{OPERATOR}\n\f",
        codecs.BOM_UTF8 + f"alice:{ALICE}\r\n{OPERATOR}\r\n".encode(),
        codecs.BOM_UTF8 + f"{OPERATOR}\n".encode() + codecs.BOM_UTF8 + f"alice:{ALICE}\n".encode(),  # two, put together
        f"alice:{ALICE}\ufeff\n\ufeff\ufeff{OPERATOR}\n",
    ],
)
def test_what_editors_put_around_tokens_is_no_part_of_them(tmp_path: Path, data: str | bytes) -> None:
    path = token_file(tmp_path, data)
    assert read_tokens(path) == {ALICE: "alice", OPERATOR: "operator"}
    assert author_of(path, ALICE) == "alice" and author_of(path, "\ufeff" + ALICE) is None


READ = """
import sys
from pathlib import Path
from service.web.tokens import read_tokens
print(ascii(read_tokens(Path(sys.argv[1]))))
"""


def test_a_file_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", READ, str(token_file(tmp_path, f"zoë:{ALICE}\n"))]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=os.environ | plain)
    assert done.stdout == ascii({ALICE: "zoë"}) + "\n", done.stderr


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "no token or a short one"),
        ("\n\ufeff\r\n", "no token or a short one"),
        ("short\n", "no token or a short one"),
        (f"{ALICE}\nbob:short\n", "no token or a short one"),
        (f"a/b:{ALICE}\n", "a name of 3 characters"),
        (f":{ALICE}\n", "a name of 0 characters"),
        ("0123456789abcdef-ünsinn\n", "no header can carry"),
        ("0123456789abcdef\x00\n", "no header can carry"),
        (f"{ALICE}\n".encode("utf-16"), "expected a file of tokens in UTF-8"),
        (f"zoë:{ALICE}\n".encode("latin-1"), "expected a file of tokens in UTF-8"),
    ],
)
def test_what_is_no_token_is_refused_in_a_line_that_does_not_show_it(
    tmp_path: Path, data: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_tokens(token_file(tmp_path, data))
    assert "\n" not in str(error.value) and "0123456789abcdef" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_tokens(path)
