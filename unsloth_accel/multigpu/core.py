"""Names of the older package's `unsloth_multigpu.core`."""

from .aggregation import AggregationMethod as AggregationMethod
from .direct_trainer import MultiGPUTrainer as MultiGPUTrainer
from .gone import missing as _missing
from .memory_manager import MemoryManager as MemoryManager
from .sharding import Shards as Shards
from .sharding import shard_batch as shard_batch


def __getattr__(name: str) -> None:
    raise _missing(__name__, name)
