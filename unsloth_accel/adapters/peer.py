"""Frozen weights fetched from the other GPUs' memory by copy engines, in place of FSDP2's all-gather.

FSDP2 gathers a unit by NCCL: its kernels take multiprocessors from the matrix products, the result is copied once more
into place, and every gather holds the ranks together. Frozen weights need none of that: nobody writes them, so a rank
may read its peers' rows at any time, straight to where they belong. The rows are put into memory that the GPUs of one
machine share (torch's symmetric memory), and each unit's `unshard` becomes a handful of copies on a stream of its own.

Blocks take turns in two sets of buffers: while one computes, the next one's weights arrive in the other. A block whose
weights are still in its buffers (at the turn from forward to backward) isn't fetched again. The input embedding isn't
fetched at all: its lookup reads the few rows that a batch names, where they are.

A rank's own rows aren't copied either: a block's weight is a range of addresses in which they are mapped between parts
of the buffers, which the other ranks' rows are copied to (`mapped_memory`). Where the driver refuses that, and with
UNSLOTH_ACCEL_PEER_GATHER=copied, they are copied like the others.

Figures: docs/fsdp2.md. Used where all ranks sit in one machine and reach each other's memory; elsewhere, and with
UNSLOTH_ACCEL_PEER_GATHER=0, FSDP2 gathers as always.
"""

from __future__ import annotations

import os
import socket
import warnings
from typing import TYPE_CHECKING, Any

from ..problems import UnslothAccelError
from . import environment
from .mapped_memory import Cuda, Handle, Mapping, MappingError, Memory, agreeing
from .units import blocks_of, groups_of, units_of

if TYPE_CHECKING:
    import torch

SWITCH = "UNSLOTH_ACCEL_PEER_GATHER"
"""Environment variable: 0 leaves the gathering to NCCL, `copied` copies a rank's own rows, too; `mapped`, as by
default, maps them, and has it told where that can't be done."""

ALIGNMENT = 256
"""Bytes; what the allocator gives, too."""

WORTH_FREEING = 2**20
"""Bytes."""


class PeerError(UnslothAccelError):
    """Weights that ranks read from each other are no longer what they were."""

    on_every_rank = True


class Units:
    """The units of one model whose frozen weights are fetched from peers."""

    def __init__(self) -> None:
        import torch

        self.stream = torch.cuda.Stream()
        self.all: list[Unit] = []
        self.holders: dict[int, Unit] = {}
        """The block whose weights are in each set of buffers."""
        self.buffers: dict[Any, torch.Tensor] = {}
        self.mapping: Mapping | None = None
        """Where own rows are mapped, not copied."""
        self.parts: dict[Any, tuple[Handle, int]] = {}
        """The mapped buffers, each for the rows of one rank, with their bytes."""
        self.shared_bytes = 0
        self.mapped_bytes = 0
        """Of this rank's rows, those that need no copy."""
        self.fetched = self.looked_up = 0
        """Units fetched and embeddings looked up in place so far, for tests and curiosity."""

    def make_room(self) -> None:
        """Free the buffers that no block uses now; whoever comes next takes memory for them again."""
        for turn, holder in list(self.holders.items()):
            own = [buffer for buffer, mapped in zip(holder.whole, holder.mapped, strict=True) if mapped is None]
            # Where all but a norm's weights are mapped there is nothing to free, and they may stay.
            if not holder.busy and (len(own) == len(holder.whole) or _bytes_of(own) > WORTH_FREEING):
                del self.holders[turn]
                for buffer in own:
                    buffer.untyped_storage().resize_(0)


class Unit:
    """One FSDP2 unit: a decoder block, the embedding or the output head, all frozen.

    `turn`: which of the two sets of buffers a block takes; None for a unit that takes memory of its own while it is
    gathered. `largest`: it is the output head, gathered when memory is scarcest, beside the loss's own.
    """

    def __init__(self, units: Units, group: Any, turn: int | None, *, largest: bool = False) -> None:
        import torch.distributed as dist

        self.units, self.group, self.turn, self.largest = units, group, turn, largest
        units.all.append(self)
        self.spare = False
        self.ready: torch.cuda.Event | None = None
        """When the weights are there."""
        self.released: torch.cuda.Event | None = None
        """When what computed with them last is done."""
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.rows: list[list[torch.Tensor]] = []
        """Per parameter, the rows of every rank."""
        self.mapped: list[torch.Tensor | None] = self._map()
        """Per parameter, the whole weight where this rank's rows are mapped into it; None where they are copied."""
        self.whole: list[torch.Tensor] = []
        """Per parameter, where the whole weight is, or was last."""
        parameters: list[Any] = group.fsdp_params
        sizes = [
            0 if mapped is not None else _padded_bytes(parameter)
            for parameter, mapped in zip(parameters, self.mapped, strict=True)
        ]
        peers = self._arena(sum(sizes))
        offset = 0
        for index, (parameter, size) in enumerate(zip(parameters, sizes, strict=True)):
            if self.mapped[index] is None:
                self.rows[index] = _rows_in(peers, parameter, offset)
                offset += size
            self._move(parameter, self.rows[index])
        self._unshard_by_copies()

    def _arena(self, size: int) -> list[torch.Tensor]:
        """Memory of `size` bytes of every rank, for the rows that aren't mapped."""
        import torch
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric

        if not size:
            return []
        arena = symmetric.empty(size, dtype=torch.uint8, device=self.group.device)
        handle = symmetric.rendezvous(arena, dist.group.WORLD.group_name)
        self.units.shared_bytes += size
        ranks = range(self.world)
        return [arena if rank == self.rank else handle.get_buffer(rank, (size,), torch.uint8) for rank in ranks]

    def _map(self) -> list[torch.Tensor | None]:
        """Take memory for the rows of those parameters that can be mapped, and find the peers'."""
        parameters, mapping = self.group.fsdp_params, self.units.mapping
        self.rows = [[] for _ in parameters]
        whole: list[torch.Tensor | None] = [None] * len(parameters)
        if mapping is None or self.turn is None:
            return whole
        memory = mapping.memory
        cast = self.group.mp_policy.param_dtype  # parameters learn it in their first forward pass
        chosen = [
            index
            for index, one in enumerate(parameters)
            if cast in (None, one.sharded_param.dtype) and _can_be_mapped(one, self.world, memory.granularity)
        ]
        sizes = [_bytes_of_rows(parameters[index]) for index in chosen]
        try:
            handles = mapping.shared(sizes)
            with agreeing():
                for number, (index, size) in enumerate(zip(chosen, sizes, strict=True)):
                    dtype = parameters[index].sharded_param._local_tensor.dtype
                    own = (handles[self.rank][number], size)
                    parts = [own if rank == self.rank else self._part(index, rank, size) for rank in range(self.world)]
                    found = memory.map(parts).view(dtype)
                    rows = list(found.split(size // dtype.itemsize))
                    for rank in range(self.world):
                        if rank != self.rank:
                            rows[rank] = memory.map([(handles[rank][number], size)]).view(dtype)
                    whole[index], self.rows[index] = found, rows
        except MappingError as error:  # on every rank
            _tell_copied(error)
            self.units.mapping = None
            self.rows = [[] for _ in parameters]
            return [None] * len(parameters)
        self.units.mapped_bytes += sum(sizes)
        self.units.shared_bytes += sum(sizes)
        return whole

    def _part(self, index: int, rank: int, size: int) -> tuple[Handle, int]:
        """The buffer for the rows of `rank` that this unit shares with the others of its turn."""
        assert self.units.mapping is not None
        key = (self.turn, index, rank, size)
        if key not in self.units.parts:
            self.units.parts[key] = (self.units.mapping.memory.create(size), size)
            self.units.shared_bytes += size
        return self.units.parts[key]

    def _move(self, parameter: Any, rows: list[torch.Tensor]) -> None:
        """Put this rank's rows into the memory that the others see."""
        import torch

        local = parameter.sharded_param._local_tensor
        with torch.no_grad():
            rows[self.rank].copy_(local.reshape(-1))
            local.data = rows[self.rank].view(local.shape)
        parameter._sharded_param_data = local.view(-1)

    def _unshard_by_copies(self) -> None:
        """Give the unit's parameter group its own `unshard` and what follows it (torch: FSDPParamGroup)."""
        from torch.distributed.fsdp._fully_shard._fsdp_collectives import AllGatherResult
        from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

        group = self.group
        to_sharded = group._to_sharded

        def unshard(async_op: bool = False) -> None:
            if group._all_gather_result is not None or group.is_unsharded:
                return
            backward = group._training_state == TrainingState.PRE_BACKWARD
            if backward and not getattr(group, "unshard_in_backward", True):
                return
            self.fetch()
            group._all_gather_result = AllGatherResult(None, self.ready, None, [], [], [])

        def wait_for_unshard() -> None:
            if group._all_gather_result is None:
                return
            self.install()
            group._to_unsharded()
            group._all_gather_result = None

        def reshard() -> None:
            if group.is_unsharded:
                to_sharded()
                self.give_back()

        group.unshard, group.wait_for_unshard, group._to_sharded = unshard, wait_for_unshard, reshard

    def look_up_rows(self, module: Any) -> None:
        """Let `module`, the input embedding that is this unit, read the rows of its tokens from the ranks that hold
        them. It is gathered for those who ask for it (`unshard`), and for batches of so many tokens that it is less to
        read: every token's row is read from every rank, one of them the right one."""
        from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

        group, gather, whole = self.group, self.group.unshard, module.forward
        (parameter,) = group.fsdp_params
        length, width = parameter._orig_size
        tables = [rows.view(-1, width) for rows in self.rows[0]]

        def unshard(async_op: bool = False) -> None:
            if group._training_state == TrainingState.IDLE:  # not a forward or backward pass
                gather(async_op)

        def forward(tokens: torch.Tensor) -> torch.Tensor:
            self.must_be_frozen()
            if not group.is_unsharded and tokens.numel() * len(tables) > length:
                gather()
                group.wait_for_unshard()
            if group.is_unsharded:
                found: torch.Tensor = whole(tokens)
                return found
            self.units.looked_up += 1
            return _rows_of(tokens, tables, length, parameter.param_dtype)

        group.unshard, module.forward = unshard, forward
        # FSDP2 looks for a gradient in the gathered weight, which may never have been there.
        parameter.to_accumulated_grad_if_needed = lambda: None

    def fetch(self) -> None:
        """Start to copy every rank's rows into place."""
        import torch

        self.must_be_frozen()
        units = self.units
        current = torch.cuda.current_stream()
        holder = None if self.turn is None else units.holders.get(self.turn)
        if holder is self and not self.spare:
            return  # still there
        if holder is not None and holder.group.is_unsharded and not holder.spare and self._in_backward():
            # Its backward pass is over, and FSDP2 has not noticed (its input needed no gradient). This block must come
            # where it was in the forward pass: autograd has kept views of that place.
            holder.group._to_sharded()
        known = len(units.buffers)
        with torch.inference_mode(False), torch.no_grad():
            if self.turn is None:
                if self.largest:
                    units.make_room()
                self.whole = self.whole or [self._empty(index) for index in range(len(self.rows))]
            elif holder is not None and holder.busy:
                # Someone has gathered several blocks at once (generation): this one gets buffers for the time.
                self.spare = True
                self.whole = [self._empty(index) for index in range(len(self.rows))]
            else:
                self.spare = False
                self.whole = self._buffers()
                # Nobody's until the copies are under way: memory may be out in between.
                units.holders.pop(self.turn, None)
            new = _allocated(self.whole) or self.turn is None or self.spare or len(units.buffers) > known
            if new or holder is None or holder.released is None:
                # Memory that is new was in other hands until what the current stream has before it is done.
                units.stream.wait_stream(current)
            else:
                units.stream.wait_event(holder.released)
            with torch.cuda.stream(units.stream):
                for whole, rows in zip(self.whole, self.rows, strict=True):
                    # Autograd must not take the same weights, fetched again, for changed ones.
                    with torch.autograd._unsafe_preserve_version_counter(whole):
                        _copy(whole, rows, self.rank)
                self.ready = torch.cuda.Event()
                self.ready.record()
        if self.turn is not None and not self.spare:
            units.holders[self.turn] = self
        units.fetched += 1

    def must_be_frozen(self) -> None:
        """Raise `PeerError` where the unit's weights train."""
        if any(parameter.sharded_param.requires_grad for parameter in self.group.fsdp_params):
            raise PeerError(
                "weights that were frozen when the model was prepared are trained now, and the other ranks may read "
                f"them while they change. Fix: set what trains before prepare, or launch with {SWITCH}=0."
            )

    @property
    def busy(self) -> bool:
        """Whether the weights are in use, or about to be."""
        return bool(self.group.is_unsharded or self.group._all_gather_result is not None)

    def install(self) -> None:
        """Let what the current stream computes next wait for the weights, and the modules have them."""
        import torch

        current = torch.cuda.current_stream()
        if self.ready is not None:
            current.wait_event(self.ready)
        for parameter, whole in zip(self.group.fsdp_params, self.whole, strict=True):
            if not hasattr(parameter, "_unsharded_param"):
                parameter.all_gather_outputs = [whole]
                with torch.inference_mode(False):
                    parameter.init_unsharded_param()
                parameter.all_gather_outputs = []  # FSDP2 would free them when it reshards
            elif parameter._unsharded_param.data_ptr() != whole.data_ptr():
                parameter._unsharded_param.data = whole.view(parameter._unsharded_param.shape)

    def _in_backward(self) -> bool:
        return bool(self.group._training_state.name == "PRE_BACKWARD")

    def give_back(self) -> None:
        """Free what isn't one of the two sets of buffers."""
        import torch

        self.released = torch.cuda.Event()
        self.released.record()
        if self.turn is None:
            for whole in self.whole:
                whole.untyped_storage().resize_(0)
        elif self.spare:
            self.whole = self._buffers()
            for parameter, whole in zip(self.group.fsdp_params, self.whole, strict=True):
                parameter._unsharded_param.data = whole.view(parameter._unsharded_param.shape)

    def forget(self) -> None:
        """Free memory that was taken for a pass which never used it."""
        if self.turn is None and not self.busy:
            for whole in self.whole:
                whole.untyped_storage().resize_(0)

    def _buffers(self) -> list[torch.Tensor]:
        found = []
        for index, parameter in enumerate(self.group.fsdp_params):
            mapped = self.mapped[index]
            if mapped is not None:
                found.append(mapped)
                continue
            key = (self.turn, index, parameter._orig_size, parameter.param_dtype, self.rows[index][0].dtype)
            if key not in self.units.buffers:
                self.units.buffers[key] = self._empty(index)
            found.append(self.units.buffers[key])
        return found

    def _empty(self, index: int) -> torch.Tensor:
        import torch

        parameter = self.group.fsdp_params[index]
        dtype = parameter.param_dtype or self.rows[index][0].dtype
        return torch.empty(parameter._orig_size.numel(), dtype=dtype, device=self.group.device)


def install(model: Any) -> str | None:
    """Have the frozen units of the FSDP2 model `model` fetched from peers; returns why not, or None where they are.

    Every rank must call it, before the first forward pass.
    """
    import torch
    import torch.distributed as dist

    layers = blocks_of(model)
    if any(not getattr(group, "_reshard_after_forward", True) for layer in layers for group in groups_of(layer)):
        return "blocks stay gathered until their backward pass"
    reason = _agreed(_obstacle()) or _agreed(_trial())
    if reason is not None:
        return reason
    turns = {id(layer): index % 2 for index, layer in enumerate(layers)}
    units, head = Units(), model.get_output_embeddings()
    mapping = units.mapping = _mapping()
    seen: set[int] = set()  # modules that are one unit together, as tied embeddings are, have one group
    for module in units_of(model):
        for group in groups_of(module):
            if id(group) not in seen and _can_be_fetched(group):
                seen.add(id(group))
                unit = Unit(units, group, turns.get(id(module)), largest=any(part is head for part in group.modules))
                if _is_plain_lookup(module, group):
                    unit.look_up_rows(module)
                # The rows' old place is free; without this the next unit's memory would come on top of it.
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
    if mapping is not None:
        mapping.close()
    dist.barrier()
    torch.cuda.synchronize()
    model.__dict__["_unsloth_accel_peer"] = units
    return None


def shared_bytes(model: Any) -> int:
    """Bytes of this rank's rows that torch's allocator doesn't count, since they are in shared memory."""
    units = getattr(model, "_unsloth_accel_peer", None)
    return 0 if units is None else int(units.shared_bytes)


def mapped_bytes(model: Any) -> int:
    """Bytes of this rank's rows that are mapped where they are needed, and never copied."""
    units: Units | None = getattr(model, "_unsloth_accel_peer", None)
    return 0 if units is None else units.mapped_bytes


def meets_nowhere(model: Any) -> bool:
    """Whether no forward or backward pass of `model` waits for another rank: all that is divided is fetched."""
    units: Units | None = getattr(model, "_unsloth_accel_peer", None)
    if units is None:
        return False
    fetched = {id(unit.group) for unit in units.all}
    groups = [group for module in units_of(model) for group in groups_of(module)]
    return all(id(group) in fetched for group in groups if group.fsdp_params)


def start_over(model: Any) -> None:
    """Bring FSDP2 back to where a step begins, after a pass that an error ended (torch 2.13: `reset_iter_state`)."""
    import torch
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    units: Units = model._unsloth_accel_peer
    if model._get_fsdp_state()._is_root is None:
        return  # not even a first pass has begun
    # What is on its way must have arrived before its place is given to others.
    torch.cuda.current_stream().wait_stream(units.stream)
    if hasattr(model, "reset_iter_state"):
        model.reset_iter_state()
    else:
        state = model._get_fsdp_state()
        for one in state._state_ctx.all_states:
            one._training_state = TrainingState.IDLE
            one._modules_to_run_forward.clear()
        for module in units_of(model):
            for group in groups_of(module):
                group._all_gather_result = None
                group._post_forward_indices.clear()
                group._training_state = TrainingState.IDLE
                group._to_sharded()
        state._comm_ctx.post_forward_order.clear()
        state._state_ctx.iter_forward_root = None
        state._state_ctx.post_backward_final_callback_queued = False
    for unit in units.all:
        unit.forget()


def _obstacle() -> str | None:
    """Why this rank can't reach its peers' memory; None where it can."""
    import torch
    import torch.distributed as dist

    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if not torch.cuda.is_available() or not dist.is_initialized():
        return "no GPU"
    world, local = dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    if world != local:
        return f"{world} processes, {local} of them on {socket.gethostname()}"
    own = torch.cuda.current_device()
    if torch.cuda.device_count() < world:
        return "a process sees its own GPU only"
    for other in range(world):
        if other != own and not torch.cuda.can_device_access_peer(own, other):
            return f"GPU {own} can't read the memory of GPU {other}"
    return None


def _trial() -> str | None:
    """Share a few bytes with the other ranks; returns why it can't be done. Every rank must call it."""
    import torch
    import torch.distributed as dist

    try:
        import torch.distributed._symmetric_memory as symmetric

        shared = symmetric.empty(ALIGNMENT, dtype=torch.uint8, device=torch.device("cuda", torch.cuda.current_device()))
        symmetric.rendezvous(shared, dist.group.WORLD.group_name)
    except Exception as error:  # whatever it is, NCCL still works
        return f"no symmetric memory: {type(error).__name__}: {error}"
    return None


def _mapping() -> Mapping | None:
    """What own rows are mapped with, unless they are to be copied or can't be mapped. Every rank must call it."""
    if os.environ.get(SWITCH) == "copied":
        return None
    mapping: Mapping | None = None
    try:
        mapping = Mapping(_memory)
        mapping.trial()
    except MappingError as error:  # on every rank
        _tell_copied(error)
        if mapping is not None:
            mapping.close()
        return None
    return mapping


def _tell_copied(error: MappingError) -> None:
    # It costs a percent or two: worth a word only to someone who asked for it.
    if not environment.rank() and os.environ.get(SWITCH) == "mapped":
        warnings.warn(f"{SWITCH}=mapped: a rank's own rows are copied all the same: {error}.", stacklevel=2)


def _memory() -> Memory:
    import torch

    return Cuda(torch.cuda.current_device())


def _agreed(obstacle: str | None) -> str | None:
    """The first rank's obstacle, on every rank; ranks that fetch and ranks that gather would wait for each other."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return obstacle
    everyone: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, obstacle)
    return next((reason for reason in everyone if reason is not None), None)


def _can_be_fetched(group: Any) -> bool:
    import torch.distributed as dist

    mesh = group.mesh_info.mesh
    if mesh.ndim != 1 or mesh.size() != dist.get_world_size():  # the rows lie in groups of ranks
        return False
    return bool(group.fsdp_params) and all(
        not parameter.sharded_param.requires_grad and parameter.fsdp_placement.dim == 0 and not parameter.offload_to_cpu
        for parameter in group.fsdp_params
    )


def _is_plain_lookup(module: Any, group: Any) -> bool:
    """Whether `module` is an embedding that does nothing but look up rows, and nobody else uses its weight."""
    import torch

    return (
        isinstance(module, torch.nn.Embedding)
        and type(module).forward is torch.nn.Embedding.forward
        and "forward" not in vars(module)
        and module.max_norm is None
        and len(group.modules) == 1
        and len(group.fsdp_params) == 1
        and not group.fsdp_params[0]._module_info.shared_modules
    )


def _rows_of(tokens: torch.Tensor, tables: list[torch.Tensor], length: int, dtype: torch.dtype | None) -> torch.Tensor:
    """The rows of `tokens`, [*tokens.shape, width], of the table that lies in `tables`, `length` rows in all."""
    import torch

    with torch.no_grad():
        known = ((tokens >= 0) & (tokens < length)).all()
        torch._assert_async(known, f"a token is outside of the embedding's {length} rows")
        found, first = None, 0
        for table in tables:
            if not len(table):
                continue
            rows = torch.nn.functional.embedding((tokens - first).clamp(0, len(table) - 1), table)
            found = rows if found is None else torch.where((tokens >= first).unsqueeze(-1), rows, found)
            first += len(table)
        assert found is not None
        return found if dtype is None else found.to(dtype)


def _rows_in(memories: list[torch.Tensor], parameter: Any, offset: int) -> list[torch.Tensor]:
    """Every rank's rows of `parameter`, in those memories from `offset` on."""
    local = parameter.sharded_param._local_tensor
    length = parameter._orig_size[0]
    most = parameter.padded_sharded_param_size[0]
    width = parameter._orig_size[1:].numel()
    views = []
    for number, memory in enumerate(memories):
        rows = max(0, min(most, length - number * most))
        count = rows * width * local.element_size()
        views.append(memory[offset : offset + count].view(local.dtype))
    return views


def _can_be_mapped(parameter: Any, world: int, granularity: int) -> bool:
    """Whether every rank has as many rows of `parameter`, and they fill whole pages."""
    alike = bool(parameter._orig_size[0] == parameter.padded_sharded_param_size[0] * world)
    return alike and _bytes_of_rows(parameter) % granularity == 0


def _bytes_of_rows(parameter: Any) -> int:
    return int(parameter.padded_sharded_param_size.numel() * parameter.sharded_param._local_tensor.element_size())


def _padded_bytes(parameter: Any) -> int:
    """Bytes of one rank's rows, the same on every rank."""
    return int(-(-_bytes_of_rows(parameter) // ALIGNMENT) * ALIGNMENT)


def _bytes_of(buffers: list[torch.Tensor]) -> int:
    """Bytes that they hold now."""
    return sum(buffer.untyped_storage().size() for buffer in buffers)


def _allocated(buffers: list[torch.Tensor]) -> bool:
    """Give those of `buffers` that hold no memory theirs; returns whether any did not."""
    empty = [buffer for buffer in buffers if not buffer.untyped_storage().size()]
    for buffer in empty:
        buffer.untyped_storage().resize_(buffer.numel() * buffer.element_size())
    return bool(empty)


def _copy(whole: torch.Tensor, rows: list[torch.Tensor], first: int) -> None:
    """Copy all ranks' `rows` one after the other into `whole`, this rank's own first, unless they are there."""
    offsets = [0]
    for part in rows:
        offsets.append(offsets[-1] + part.numel())
    for turn in range(len(rows)):
        rank = (first + turn) % len(rows)
        part = whole[offsets[rank] : offsets[rank + 1]]
        if part.data_ptr() != rows[rank].data_ptr():
            part.copy_(rows[rank])
