"""Memory of the machine and of a GPU: what can still be taken, and one line for whatever asks for more."""

import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unified_lift.errors import UserError

_GIB = 2**30
_CGROUPS = (  # limit, use and statistics of a container, of version 2 and of version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_LACKS = re.compile(  # torch, cuBLAS, our kernels; NumPy; OpenCV; Pillow; the loader of shared libraries
    r"out of memory|(not enough|insufficient|cannot allocate|can't allocate) memory|alloc_failed|bad_alloc|"
    r"failed to map segment",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to allocate|unable to allocate|failed to allocate) ([\d.]+ \w+)", re.IGNORECASE)
_ON_GPU = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
_ALLOWED = re.compile(r"([\d.]+ \w+) allowed")
_TAKEN = re.compile(r"this process has ([\d.]+ \w+) memory in use|([\d.]+ \w+) is allocated by PyTorch", re.IGNORECASE)


class OutOfMemory(UserError, MemoryError):
    """More memory was asked for than there is."""


@contextmanager
def enough_memory(doing: str, *, lower: str) -> Iterator[None]:
    """Turn lack of memory in the block, whichever library meets it, into an OutOfMemory, one line.

    It says what was being done, how much was asked for, how much there is, and what to lower.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (cause := lack_of_memory(error)) is None:
            raise
        raise OutOfMemory(f"{doing}: {described(cause)}; {lower}") from error


def lack_of_memory(error: BaseException) -> BaseException | None:
    """Return the error that says there is too little memory, this one or the first of those it came from, or None.

    What is done while the first is on its way up often fails too, and says less: so does the capture of a CUDA graph.
    """
    found: BaseException | None = None
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    for one in chain:
        said = isinstance(one, RuntimeError | ImportError) or type(one).__module__ == "cv2"
        if isinstance(one, MemoryError) or (isinstance(one, OSError) and one.errno == errno.ENOMEM):
            found = one
        elif (said or isinstance(one, OSError) and one.errno is None) and _LACKS.search(str(one)):
            found = one
        elif not said:  # another error met an earlier one and dealt with it
            break
    return found


def described(error: BaseException) -> str:
    """Return `out of [GPU] memory`, how much was asked for, as far as the library says it, and how much there is."""
    text, parts = str(error), []
    if match := _ASKED.search(text):
        parts.append(f"{_readable(match[1])} asked for")
    elif text:
        parts.append(text.splitlines()[0][:160])
    if not is_on_gpu(error):
        parts.append(f"{_readable(f'{available_memory()} bytes')} can be taken")
    elif match := _ON_GPU.search(text):
        parts.append(f"{match[2]} of {match[1]} free")
        parts += [f"{match[1]} allowed"] if (match := _ALLOWED.search(text)) else []
        parts += [f"{match[1] or match[2]} in use by this process"] if (match := _TAKEN.search(text)) else []
    else:
        with suppress(RuntimeError, KeyError, AssertionError):  # a GPU that is beyond telling; torch without CUDA
            free, total = (_readable(f"{size} bytes") for size in sys.modules["torch"].cuda.mem_get_info())
            parts.append(f"{free} of {total} free")
    return f"out of {'GPU ' if is_on_gpu(error) else ''}memory: {', '.join(parts)}"


def is_on_gpu(error: BaseException) -> bool:
    """Return whether it is memory of a GPU that is lacking."""
    return re.search(r"\bCU(DA|BLAS|DNN|SOLVER|SPARSE)", str(error)) is not None


def _readable(amount: str) -> str:
    """Return an amount in a unit for people, such as 1.50 GiB for 1610612736 bytes; one in another unit as it is."""
    number, unit = amount.split()
    size, units = float(number), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    if unit not in units:
        return amount
    while size >= 1024 and unit != units[-1]:
        size, unit = size / 1024, units[units.index(unit) + 1]
    return f"{size:.0f} bytes" if unit == "bytes" else f"{size:,.2f} {unit}"


def resident_memory() -> int:
    """Return the bytes of main memory that this process has now."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # no Linux: the most that it ever had


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes of main memory that can still be taken.

    As the kernel says and, in a container, its limit, and that of this process (`ulimit -v`).
    """
    info = root / "proc/meminfo"
    if not info.exists():  # no Linux: half of the machine is a guess on the safe side
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    available = 1024 * int(lines["MemAvailable"].split()[0])
    for names in _CGROUPS:
        paths = [root / "sys/fs/cgroup" / name for name in names]
        if all(path.exists() for path in paths):
            most, taken, statistics = (path.read_text().strip() for path in paths)
            cached = dict(line.split() for line in statistics.splitlines()).get("inactive_file", "0")
            if most != "max":
                available = min(available, max(int(most) - int(taken) + int(cached), 0))
    limit, pages = resource.getrlimit(resource.RLIMIT_AS)[0], root / "proc/self/statm"
    if limit != resource.RLIM_INFINITY and pages.exists():
        available = min(available, max(limit - int(pages.read_text().split()[0]) * resource.getpagesize(), 0))
    return available
