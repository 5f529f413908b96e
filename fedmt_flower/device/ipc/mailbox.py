"""Memory of a GPU that two processes see, so that a state need not pass through the host's."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmt_flower.device.ipc.place import Place
from fedmt_flower.device.ipc.state import empty_buffer

_MARK = b"fedmt"
"""What a new place begins with: a process that opens it and reads this has opened the right one."""


def new_place(size: int, device: torch.device) -> tuple[Tensor, Place]:
    """A buffer of at least `size` bytes, to be kept while another process may read it, and its place.

    Raises
    ------
    RuntimeError
        If CUDA shares no memory between processes here.
    """
    buffer = empty_buffer(max(size, len(_MARK)), device)
    buffer[: len(_MARK)] = torch.frombuffer(bytearray(_MARK), dtype=torch.uint8).to(device)
    torch.cuda.synchronize(device)
    # What was done before has ended, and what is done later a checksum follows: no event is to be waited for.
    _, *shared, _, _ = buffer.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
    place = Place(*shared)
    # torch would keep the memory until a reader has closed it: for ever, if that was killed or never came.
    torch.UntypedStorage._release_ipc_counter_cuda(place.counter, place.counter_offset)
    return buffer, place


def opened(place: Place, device: torch.device) -> Tensor:
    """The buffer at `place`, of another process that uses the same GPU.

    Raises
    ------
    RuntimeError
        If it cannot be opened, or is not what its owner made.
    """
    # Opening a place before that ends the process.
    torch.cuda.init()  # type: ignore[no-untyped-call]
    index = torch.cuda.current_device() if device.index is None else device.index
    storage = torch.UntypedStorage._new_shared_cuda(
        index,
        place.handle,
        place.size,
        place.offset,
        place.counter,
        place.counter_offset,
        b"",
        False,
    )
    buffer = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
    found = bytes(buffer[: len(_MARK)].cpu().tolist())
    if found != _MARK:
        raise RuntimeError(f"a place shared between processes begins with {found!r}, expected {_MARK!r}")
    return buffer
