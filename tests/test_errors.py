"""Which errors are the user's: one sentence for them, a traceback for everything else."""

import errno
from pathlib import Path

import numpy as np
import pytest

from jaxalign.data.files import JsonLines
from jaxalign.errors import UserError, user_message
from jaxalign.losses.log_probs import token_log_probs

ROOT = Path(__file__).resolve().parents[1]


def message_of(function, *arguments):
    """What the user is told about the error of a call."""
    try:
        function(*arguments)
    except BaseException as error:
        return user_message(error)
    pytest.fail("there was no error")


def code_in(folder, source):
    """A function `f` whose code lies in a folder of the project, as its own files do."""
    names = {}
    exec(compile(source, str(ROOT / folder / "made_for_a_test.py"), "exec"), names)
    return names["f"]


def test_a_user_error_is_its_sentence():
    assert user_message(UserError("lower the batch size")) == "lower the batch size"
    assert message_of(JsonLines, "/nowhere.jsonl") == "cannot read /nowhere.jsonl: No such file or directory"
    assert isinstance(UserError("x"), ValueError)


def test_a_value_error_raised_on_purpose_by_the_project_is_the_users():
    assert message_of(token_log_probs, np.ones((2, 3)), np.ones((4, 5)), np.zeros(2, int)).startswith("head (4, 5)")


@pytest.mark.parametrize("folder", ["jaxalign/losses", "experiments", "configs"])
@pytest.mark.parametrize("kind", ["ValueError", "OSError", "FileNotFoundError"])
def test_so_in_every_folder_of_the_project(folder, kind):
    assert message_of(code_in(folder, f"def f():\n  raise {kind}('too small')")) == "too small"
    source = f"def f():\n  try:\n    int('x')\n  except ValueError as error:\n    raise {kind}('too small') from error"
    assert message_of(code_in(folder, source)) == "too small"


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n  int('x')",
        "def f():\n  raise KeyError('x')",
        "def f():\n  raise TypeError('x')",
        "def f():\n  assert False, 'x'",
        "def f():\n  [][0]",
        "def f():\n  import numpy\n  numpy.ones(3).reshape(2, 2)",
        "def f():\n  open('/nowhere')",
        "def f():\n  raise KeyboardInterrupt",
    ],
)
def test_what_the_code_did_not_foresee_keeps_its_traceback(source):
    assert message_of(code_in("jaxalign", source)) is None


def test_other_peoples_code_is_not_the_project():
    assert message_of(code_in("tests", "def f():\n  raise ValueError('x')")) is None
    assert message_of(code_in("../jaxalign_plugins", "def f():\n  raise ValueError('x')")) is None
    assert user_message(ValueError("never raised")) is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "no space is left on the device"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission is denied"),
    ],
)
def test_trouble_with_the_disk_is_told_wherever_it_comes_from(number, text):
    assert user_message(OSError(number, "whatever", "/data/x")) == f"/data/x: {text}"
    assert user_message(OSError(number, "whatever")) == text


def test_a_real_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert message_of(open, tmp_path / "file" / "x") is None, "not one of the disk's troubles"
