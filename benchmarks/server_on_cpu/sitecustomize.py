"""Has TRL's client send by `over_gloo` in every Python process that finds this file, and a CPU not be refused."""

from __future__ import annotations

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def client(module: Any) -> None:
    from over_gloo import Gloo  # type: ignore[import-not-found]

    kept: dict[int, Any] = {}

    def send(iterator: Any, group: Any, src: int, post_iter_func: Any) -> None:
        for number, item in enumerate(iterator):
            tensor = post_iter_func(item).contiguous().clone()  # it is written to
            if os.environ.get("STALE"):
                tensor = kept.setdefault(number, tensor.clone()).clone()
            group.send(tensor)

    joined = module.VLLMClient.init_communicator
    module.VLLMClient.init_communicator = lambda self, device=0: joined(self, "cuda")  # past TRL's refusal of a CPU
    module.open_trainer_endpoint = lambda info: Gloo(info["master_address"], info["master_port"], rank=0)
    module.packed_nccl_broadcast_producer = send


def planning(module: Any) -> None:
    module._needs_gpu = lambda run: {}


def asking(module: Any) -> None:
    module._lacking = lambda address, fields: []


CHANGED = {
    "trl.generation.vllm_client": client,
    "unsloth_accel.planning.device_and_count": planning,
    "unsloth_accel.data.generation_server": asking,
}


class Changes(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in CHANGED else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            CHANGED[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Changes())
