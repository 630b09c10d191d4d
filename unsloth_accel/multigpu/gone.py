"""Names of the older package that are not here: importing one says what does its work (docs/migrating.md)."""

from __future__ import annotations

_LAUNCH = "enable_multi_gpu(…, launch=True), or unsloth-accel launch"
_HOOKS = "enable_multi_gpu, which needs no hooks"
_LOGS = "the Trainer's output_dir, which gets logs and report.html"
GONE = {
    **dict.fromkeys(("DDPManager", "DDPTrainer", "DDPLauncher", "launch_ddp_training"), _LAUNCH),
    **dict.fromkeys(("MultiGPULogger", "ProgressTracker"), _LOGS),
    **dict.fromkeys(("TrainingHooks", "LoaderHooks", "TrainerHooks", "GRPOHooks"), _HOOKS),
    "enable_selekt": "a merge by PEFT's own tools afterwards",
}
"""What does the work of each."""


def missing(module: str, name: str) -> Exception:
    """Return what a module without `name` raises: an ImportError, which an import statement shows as it is, where the
    older package had that name, else the usual AttributeError."""
    if name in GONE:
        return ImportError(f"{name} of unsloth-multigpu is not carried over. Fix: {GONE[name]}", name=name)
    return AttributeError(f"module {module!r} has no attribute {name!r}")
