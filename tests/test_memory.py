import errno

import cv2
import numpy as np
import pytest
import torch

from unified_lift.memory import OutOfMemory, enough_memory, lack_of_memory
from unified_lift.reading import reading

PIB = 2**50
ASKS = {
    "1,024.00 TiB asked for, ": lambda: torch.empty(PIB, dtype=torch.uint8),
    "1.00 PiB asked for, ": lambda: np.zeros(PIB, np.uint8),
    "": lambda: bytearray(2**62),
    "GPU memory: CUDA error: out of memory": lambda: fail(RuntimeError("CUDA error: out of memory\nCompile with x")),
    "the CUDA kernels failed: out of memory": lambda: fail(RuntimeError("the CUDA kernels failed: out of memory")),
    "7.45 GiB asked for, ": lambda: fail(cv2.error("Insufficient memory) Failed to allocate 8000000000 bytes in x")),
    "Cannot allocate memory": lambda: fail(OSError(errno.ENOMEM, "Cannot allocate memory")),
}


def fail(error):
    raise error


@pytest.mark.parametrize("said", ASKS)
def test_whichever_library_lacks_memory_it_is_one_line(said):
    with pytest.raises(OutOfMemory) as caught, enough_memory("the work", lower="lower --this"):
        ASKS[said]()
    line = str(caught.value)
    assert "\n" not in line
    assert said in line
    assert line.startswith(f"the work: out of {'GPU ' if 'CUDA' in said else ''}memory")
    assert line.endswith("; lower --this")
    assert "GiB can be taken" in line or "CUDA" in said


def in_turn(first, then):
    """Raise the one while the other is on its way up."""
    try:
        first()
    finally:
        fail(then)


def instead(first, then):
    """Raise the one because of the other, which is dealt with."""
    try:
        first()
    except MemoryError:
        fail(then)


def test_what_fails_in_turn_does_not_hide_what_was_asked_for():
    then = RuntimeError("operation failed due to a previous error during capture")
    with pytest.raises(OutOfMemory, match="1.00 PiB asked for"), enough_memory("x", lower="y"):
        in_turn(lambda: np.zeros(PIB, np.uint8), then)


@pytest.mark.parametrize("error", [ValueError("out of memory"), FileNotFoundError(2, "out of memory"), KeyError("x")])
def test_other_errors_stay_what_they_are(error):
    for raises in (fail, lambda error: instead(lambda: bytearray(2**62), error)):
        with pytest.raises(type(error)) as caught, enough_memory("x", lower="y"):
            raises(error)
        assert caught.value is error
    assert lack_of_memory(RuntimeError("a cut")) is None


def test_a_file_for_which_there_is_no_memory_is_not_called_broken(tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(OutOfMemory, match=r"a.png: out of memory: .*; end other programs, or use a smaller file"):
        with reading(tmp_path / "a.png", "image", fix="copy it again"):
            fail(OSError("out of memory when reading image file"))
