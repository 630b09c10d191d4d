"""The interface of unsloth-multigpu: enable_multi_gpu, MultiGPUTrainer and the managers, over this package's rooms.

Nothing is done here that another room does: arguments are checked, and handed to it. `core` and `utils` hold the names
that the older package had there.
"""
