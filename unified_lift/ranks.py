"""The processes (ranks) that train one scene together, as torchrun starts them; without it nothing here does anything.

Engine: torch.distributed, NCCL between GPUs and gloo between CPUs.
"""

import io
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from unified_lift.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_PATIENCE = timedelta(minutes=30)  # others may label thousands of photos meanwhile; whoever is silent longer hangs
_FAILED = "unified_lift/failed"  # in the store: the first process that something went wrong in
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # all set by torchrun
_store: Any = None
_streams: tuple[Any, Any] | None = None  # stdout and stderr of a process that is hushed


class LostRank(UserError):
    """Another process has ended or hangs."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run. A step sees `batch` views, which they share out; all hold all Gaussians.

    One process that takes several views a step does what as many processes do with one each.
    """

    index: int = 0  # of this process
    count: int = 1
    batch: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this process is the one that writes and prints."""
        return self.index == 0

    @property
    def mine(self) -> range:
        """Return which of the views of a step this process takes."""
        return range(self.index, self.batch, self.count)

    def add(self, *tensors: "Tensor", largest: bool = False) -> None:
        """Replace tensors of one dtype by their sums over the processes, or by the `largest`; the same bits in all."""
        if self.count == 1 or not tensors:
            return
        import torch
        from torch import distributed

        one = tensors[0] if len(tensors) == 1 and tensors[0].is_contiguous() else None
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]) if one is None else one
        with _talking():
            distributed.all_reduce(flat, distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM)
        if one is None:
            for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def sums(self, *numbers: int) -> list[int]:
        """Return the sums of whole numbers over the processes; no GPU is waited for."""
        import torch

        found = torch.tensor(numbers)
        self.add(found)
        return found.tolist()

    def of(self, owner: int, make: Callable[[], T]) -> T:
        """Return what `make` returns in process `owner`, which alone calls it; tensors come to the same kind of device.

        What cannot be pickled cannot be returned.
        """
        if self.count == 1:
            return make()
        from torch import distributed

        tensors: list[Tensor] = []
        value: Any = make() if self.index == owner else None
        found = [_packed(value, tensors) if self.index == owner else b""]
        with _talking():
            distributed.broadcast_object_list(found, src=owner)
            if self.index != owner:
                value = _unpacked(found[0], tensors)
            for tensor in tensors:
                distributed.broadcast(_as_bytes(tensor), src=owner)
        return value

    def each(self, makes: Sequence[Callable[[], T]]) -> list[T]:
        """Return what each of `makes` returns, which processes call in turn; every process gets all."""
        mine = {place: makes[place]() for place in range(self.index, len(makes), self.count)}
        return [self.of(place % self.count, partial(mine.__getitem__, place)) for place in range(len(makes))]

    def same(self, tensor: "Tensor") -> None:
        """Replace a contiguous tensor by that of the first process."""
        if self.count > 1:
            from torch import distributed

            with _talking():
                distributed.broadcast(_as_bytes(tensor.detach()), src=0)

    def swap(self, rows: "Tensor", sent: Sequence[int], received: Sequence[int]) -> "Tensor":
        """Return the rows that all processes have for this one, of theirs in turn; `rows` are those for each of them.

        `sent` and `received` say how many they are, by process.
        """
        found = rows.new_empty(sum(received), *rows.shape[1:])
        if self.count == 1 or not rows.shape[1:].numel():
            return rows if self.count == 1 else found
        from torch import distributed

        with _talking():
            distributed.all_to_all_single(found, rows.contiguous(), list(received), list(sent))
        return found

    def joined(self, rows: "Tensor", counts: Sequence[int]) -> "Tensor":
        """Return the rows of all processes, one after another; `counts` says how many each has."""
        from torch import distributed

        found = rows.new_empty(sum(counts), *rows.shape[1:])
        parts = found.split(list(counts))
        parts[self.index].copy_(rows)
        if self.count > 1 and rows.shape[1:].numel():
            with _talking():
                for owner, part in enumerate(parts):
                    distributed.broadcast(_as_bytes(part), src=owner)
        return found

    def of_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the first process, which alone calls it."""
        return self.of(0, make)

    def __str__(self) -> str:
        words = f"{self.count} processes: {self.batch} views a step"
        return f"{words}, rates x {self.batch**0.5:.3g}, betas to the power of {self.batch}"


_current = Ranks()


def current() -> Ranks:
    """Return this process among those that have joined; one alone without torchrun."""
    return _current


def launched() -> bool:
    """Return whether torchrun started several processes."""
    return all(name in os.environ for name in _ENVIRONMENT) and int(os.environ["WORLD_SIZE"]) > 1


def join(device_type: str) -> Ranks:
    """Meet the other processes, if there are any; again it does nothing. On GPUs each process takes one of its own.

    A UserError: more processes than GPUs, or the others did not come.
    """
    global _current, _store
    if not launched() or _current.count > 1:
        return _current
    import torch
    from torch import distributed

    hush()
    index, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    of_machine = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if device_type == "cuda":
        if of_machine > torch.cuda.device_count():
            there = f"this machine has {torch.cuda.device_count()} GPUs"
            raise UserError(f"--nproc_per_node {of_machine}: {there}; start no more processes, or say --device cpu")
        if not distributed.is_nccl_available():
            raise UserError("this torch has no NCCL, by which GPUs talk; install a CUDA build of torch for Linux")
        torch.cuda.set_device(local)
    if of_machine == count and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of a machine may have no address
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    with _talking():
        _store = _connected(keeps_it=index == 0 and not _has_agent())
        meeting = distributed.PrefixStore("unified_lift/group", _store)
        distributed.init_process_group(backend, store=meeting, rank=index, world_size=count, timeout=_PATIENCE)
    _current = Ranks(index, count, count)
    return _current


def _has_agent() -> bool:
    """Return whether torchrun keeps the store, so that it outlives every process of the run."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _connected(*, keeps_it: bool) -> Any:
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=keeps_it, timeout=_PATIENCE, wait_for_workers=False)


def leave() -> None:
    """Part from the others, after all is done."""
    global _current
    if _current.count > 1:
        from torch import distributed

        _current = Ranks()
        with suppress(RuntimeError):  # some may have gone before
            distributed.destroy_process_group()


def hush() -> None:
    """Print nothing from now on unless this is the first process."""
    global _streams
    if launched() and int(os.environ["RANK"]) > 0 and _streams is None:
        _streams = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # until the process ends


def may_report() -> bool:
    """Return whether this process is to say what went wrong: the first in which anything did, which then prints."""
    if not launched():
        return True
    if _store is None and not _has_agent():  # what goes wrong before they meet does so in all of them
        return os.environ["RANK"] == "0"
    with suppress(RuntimeError):  # the store has gone with the process that kept it, which has reported
        store, mine = _store or _connected(keeps_it=False), os.environ["RANK"].encode()
        if store.compare_set(_FAILED, "", mine.decode()) == mine:
            if _streams is not None:
                sys.stdout, sys.stderr = _streams
            return True
    return False


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:  # whatever the backend calls it
        said = re.sub(r"^(\[.*?\] ?)+", "", str(error).partition("\n")[0]).partition(". ")[0][:200]
        fix = "nothing saved is lost: start again with --resume auto"
        raise LostRank(f"another process of this run has ended or does not answer ({said}); {fix}") from None


def _as_bytes(tensor: "Tensor") -> "Tensor":
    """Return the memory of a contiguous tensor: backends do not know every dtype."""
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _packed(value: Any, tensors: "list[Tensor]") -> bytes:
    """Return a pickle without the tensors, which are added to the list."""
    import torch

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            if not isinstance(part, torch.Tensor):
                return None
            tensors.append(part.detach().contiguous())
            return tuple(part.shape), part.dtype, part.device.type

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _unpacked(data: bytes, tensors: "list[Tensor]") -> Any:
    """Return the value of `_packed` with room for its tensors, which is added to the list."""
    import torch

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, part: Any) -> Any:
            shape, dtype, device = part
            tensors.append(torch.empty(shape, dtype=dtype, device=device))
            return tensors[-1]

    return Unpickler(io.BytesIO(data)).load()
