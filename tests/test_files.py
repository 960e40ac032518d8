"""Files that are complete or unchanged, and errors on one line."""

import errno
import os
import subprocess
import sys

import pytest

from cotir_jax import files

FIRST, SECOND = b"the first content", b"the second, which is longer"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(FIRST)
    return path


def test_content_appears_at_the_end_only(target):
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(SECOND)
        assert target.read_bytes() == FIRST
        assert temporary.parent == target.parent
    assert target.read_bytes() == SECOND
    assert os.listdir(target.parent) == [target.name]


def test_an_error_leaves_the_old_file_and_nothing_else(target):
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_bytes(SECOND)
        raise RuntimeError
    assert target.read_bytes() == FIRST
    assert os.listdir(target.parent) == [target.name]


def test_a_full_disk_leaves_the_old_file(target):
    # /dev/full answers every write as a full disk does.
    with pytest.raises(OSError) as failure, files.atomic_path(target) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(SECOND)
    assert failure.value.errno in files.NO_SPACE
    assert target.read_bytes() == FIRST
    assert os.listdir(target.parent) == [target.name]


def test_errors_name_the_target(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as failure:
        files.write_text(path, "")
    assert failure.value.filename == str(path)


def test_a_killed_process_leaves_the_old_file(target):
    script = (
        "import os, signal, sys; from cotir_jax import files\n"
        "with files.atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(target)], check=False).returncode == -9
    assert target.read_bytes() == FIRST
    left = [name for name in os.listdir(target.parent) if name != target.name]
    assert len(left) == 1 and left[0].startswith(".") and left[0].endswith(".part")


def test_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    files.write_text(path, "grün\n")
    assert path.read_bytes() == b"gr\xc3\xbcn\n"


def test_two_writers_of_one_file_do_not_meet(target):
    with files.atomic_path(target) as one, files.atomic_path(target) as other:
        one.write_bytes(FIRST)
        other.write_bytes(SECOND)
    assert target.read_bytes() == FIRST  # the outer one ended last


@pytest.mark.parametrize(
    ("error", "limit", "line"),
    [
        (ValueError("two\n  lines\tof text\n"), None, "two lines of text"),
        (ValueError("two\n  lines"), 5, "two l"),
        (MemoryError(), None, "not enough memory"),
        (EOFError(), None, "EOFError"),
    ],
)
def test_messages_fit_one_line(error, limit, line):
    assert files.one_line(error, limit) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad\nvalue"), "error: bad value\n"),
        (OSError(errno.EACCES, "No permission", "x"), "error: [Errno 13] No permission: 'x'\n"),
        (MemoryError(), "error: not enough memory\n"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "error: [Errno 28] No space left on device: what was saved before is unchanged; free "
            "some space and run the command again\n",
        ),
    ],
)  # fmt: skip
def test_expected_errors_print_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as end, files.errors_on_one_line(debug=False):
        raise error
    assert end.value.code == 1
    assert capsys.readouterr().err == line


def test_defects_and_debugging_keep_the_traceback():
    with pytest.raises(KeyError), files.errors_on_one_line(debug=False):
        raise KeyError("a defect")
    with pytest.raises(ValueError, match="shown"), files.errors_on_one_line(debug=True):
        raise ValueError("shown")
