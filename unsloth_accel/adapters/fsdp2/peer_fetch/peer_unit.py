"""One FSDP2 unit whose frozen weights are fetched from the peers (`adapters.fsdp2.peer_fetch.fetch`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....errors import UnslothAccelError
from .mapped_memory import Handle, Mapping, MappingError, agreeing
from .peer_reach import SWITCH, tell_copied
from .peer_rows import allocated, bytes_of, bytes_of_rows, can_be_mapped, copy_rows, padded_bytes, rows_in, rows_of

if TYPE_CHECKING:
    import torch

WORTH_FREEING = 2**20
"""Bytes above which a buffer is worth freeing."""


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
        """Unit whose weights are in each set of buffers."""
        self.buffers: dict[Any, torch.Tensor] = {}
        self.mapping: Mapping | None = None
        """Mapping of own rows; None where they are copied."""
        self.parts: dict[Any, tuple[Handle, int]] = {}
        """Mapped buffers, each for the rows of one rank, with their bytes."""
        self.shared_bytes = 0
        self.mapped_bytes = 0
        """Bytes of this rank's rows that need no copy."""
        self.fetched = self.looked_up = 0
        """Units fetched and embeddings looked up in place so far, for tests and curiosity."""

    def make_room(self) -> None:
        """Free the buffers that no block uses now; whoever comes next takes memory for them again."""
        for turn, holder in list(self.holders.items()):
            own = [buffer for buffer, mapped in zip(holder.whole, holder.mapped, strict=True) if mapped is None]
            # Where all but a norm's weights are mapped there is nothing to free, and they may stay.
            if not holder.busy and (len(own) == len(holder.whole) or bytes_of(own) > WORTH_FREEING):
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
        """Event after which the weights are there."""
        self.released: torch.cuda.Event | None = None
        """Event after which the last computation with them is done."""
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.rows: list[list[torch.Tensor]] = []
        """Rows of every rank, per parameter."""
        self.mapped: list[torch.Tensor | None] = self._map()
        """Whole weight per parameter, where this rank's rows are mapped into it; None where they are copied."""
        self.whole: list[torch.Tensor] = []
        """Whole weight per parameter, where it is now or was last."""
        parameters: list[Any] = group.fsdp_params
        copied = [one for one, mapped in zip(parameters, self.mapped, strict=True) if mapped is None]
        peers, offset = self._arena(sum(map(padded_bytes, copied))), 0
        for index, parameter in enumerate(parameters):
            if self.mapped[index] is None:
                self.rows[index] = rows_in(peers, parameter, offset)
                offset += padded_bytes(parameter)
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
            if cast in (None, one.sharded_param.dtype) and can_be_mapped(one, self.world, memory.granularity)
        ]
        sizes = [bytes_of_rows(parameters[index]) for index in chosen]
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
            tell_copied(error)
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

        group = self.group
        to_sharded = group._to_sharded

        def unshard(async_op: bool = False) -> None:
            if group._all_gather_result is not None or group.is_unsharded:
                return
            if self._in_backward() and not getattr(group, "unshard_in_backward", True):
                return
            self.fetch()
            group._all_gather_result = AllGatherResult(None, self.ready, None, [], [], [])

        def wait_for_unshard() -> None:
            if group._all_gather_result is not None:
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
            return rows_of(tokens, tables, length, parameter.param_dtype)

        group.unshard, module.forward = unshard, forward

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
            new = allocated(self.whole) or self.turn is None or self.spare or len(units.buffers) > known
            if new or holder is None or holder.released is None:
                # Memory that is new was in other hands until what the current stream has before it is done.
                units.stream.wait_stream(current)
            else:
                units.stream.wait_event(holder.released)
            with torch.cuda.stream(units.stream):
                for whole, rows in zip(self.whole, self.rows, strict=True):
                    # Autograd must not take the same weights, fetched again, for changed ones.
                    with torch.autograd._unsafe_preserve_version_counter(whole):
                        copy_rows(whole, rows, self.rank)
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
        """Return whether the weights are in use, or about to be."""
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
        for index, (parameter, mapped) in enumerate(zip(self.group.fsdp_params, self.mapped, strict=True)):
            key = (self.turn, index, parameter._orig_size, parameter.param_dtype, self.rows[index][0].dtype)
            if mapped is None and key not in self.units.buffers:
                self.units.buffers[key] = self._empty(index)
            found.append(self.units.buffers[key] if mapped is None else mapped)
        return found

    def _empty(self, index: int) -> torch.Tensor:
        import torch

        parameter = self.group.fsdp_params[index]
        dtype = parameter.param_dtype or self.rows[index][0].dtype
        return torch.empty(parameter._orig_size.numel(), dtype=dtype, device=self.group.device)
