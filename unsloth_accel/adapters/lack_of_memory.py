"""The word of a GPU that there is no memory left."""

from __future__ import annotations


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether `error` is a GPU's or the allocator's word that there is no memory left."""
    if not isinstance(error, RuntimeError):
        return False
    from accelerate.utils.memory import should_reduce_batch_size

    # cuBLAS and cuDNN, which take memory of their own, have another word for it.
    said = any(word in str(error).lower() for word in ("out of memory", "status_alloc_failed"))
    return said or bool(should_reduce_batch_size(error))
