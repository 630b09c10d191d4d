"""Where a thread stands, by its stack: real ones, and those that a launch was seen to have."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from unsloth_accel.callbacks.stack_place import look_at, place_of

HOME = "/lib/python3.11/site-packages/"
TRAIN = [("train.py", "<module>", 9), (f"{HOME}transformers/trainer.py", "_inner_training_loop", 1602)]
STEP = [*TRAIN, (f"{HOME}transformers/trainer.py", "training_step", 2014)]
GATHER = [
    (f"{HOME}accelerate/utils/operations.py", "gather_object", 5),
    (f"{HOME}torch/distributed/c10d_logger.py", "wrapper", 83),
    (f"{HOME}torch/distributed/distributed_c10d.py", "all_gather_object", 3513),
    (f"{HOME}torch/distributed/c10d_logger.py", "wrapper", 83),
    (f"{HOME}torch/distributed/distributed_c10d.py", "all_gather", 4287),
]
CALLBACK = [*TRAIN, (f"{HOME}transformers/trainer_callback.py", "call_event", 600), ("mine.py", "on_step_end", 34)]
UNSHARD = [
    *STEP,
    (f"{HOME}transformers/models/llama/modeling_llama.py", "forward", 300),
    (f"{HOME}torch/nn/modules/module.py", "_call_impl", 1800),
    (f"{HOME}torch/distributed/fsdp/_fully_shard/_fsdp_state.py", "_pre_forward", 250),
    (f"{HOME}torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py", "wait_for_unshard", 350),
]


@pytest.mark.parametrize(
    ("calls", "what", "strict", "waits"),
    [
        ([], "code outside of a step", False, False),
        (TRAIN, "code outside of a step", False, False),
        (STEP, "the forward and backward passes", True, False),
        ([*STEP, (f"{HOME}torch/_dynamo/convert_frame.py", "_compile", 1)], "compiling", False, False),
        ([*TRAIN, (f"{HOME}torch/optim/adamw.py", "step", 1)], "the optimizer", True, False),
        ([*TRAIN, (f"{HOME}transformers/trainer.py", "get_batch_samples", 1)], "the data loader", False, False),
        ([*TRAIN, (f"{HOME}transformers/trainer.py", "_save_checkpoint", 1)], "saving a checkpoint", False, False),
        ([*TRAIN, (f"{HOME}transformers/trainer.py", "evaluate", 1)], "an evaluation", False, False),
        (CALLBACK, "a callback", False, False),
        (
            [*STEP, ("Unsloth/UnslothGRPOTrainer.py", "_calculate_rewards", 9), ("judge.py", "ask", 4)],
            "a reward function",
            False,
            False,
        ),
        ([*STEP, (f"{HOME}trl/generation/vllm_client.py", "generate", 9)], "generation by vLLM", False, False),
        (
            [*CALLBACK, ("ranks.py", "of_every_rank", 1), *GATHER],
            "a callback, where it waits in gather_object (all_gather), called from on_step_end (mine.py:34)",
            False,
            True,
        ),
        (
            UNSHARD,
            "the forward and backward passes, where it waits in _pre_forward (wait_for_unshard), called from forward "
            "(modeling_llama.py:300)",
            True,
            True,
        ),
        (GATHER, "code outside of a step, where it waits in gather_object (all_gather)", False, True),
    ],
)
def test_places(calls: list[tuple[str, str, int]], what: str, strict: bool, waits: bool) -> None:
    found = place_of(calls)
    assert (found.what, found.strict, found.waits) == (what, strict, waits)


def test_a_lock_may_be_held_by_another_run() -> None:
    lock = [
        ("prepare.py", "_split", 110),
        (f"{HOME}filelock/_api.py", "__enter__", 1),
        (f"{HOME}filelock/_api.py", "acquire", 2),
    ]
    found = place_of(lock)
    assert (found.waits, found.paused) == (True, True)
    assert found.what == "code outside of a step, where it waits in acquire, called from _split (prepare.py:110)"
    assert not place_of(GATHER).paused


def test_a_thread_that_stands_still_and_one_that_moves() -> None:
    done, asleep, moving = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        asleep.set()
        done.wait()
        moving.set()
        while done.is_set():
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        asleep.wait()
        time.sleep(0.05)
        first = look_at(thread.ident or 0)
        assert first == look_at(thread.ident or 0)
        done.set()
        moving.wait()
        assert look_at(thread.ident or 0)[1] != first[1]
    finally:
        done.set()
        done.clear()
        thread.join()


def test_a_look_keeps_nothing_of_a_stack() -> None:
    looked, going = threading.Event(), threading.Event()
    kept: list[weakref.ref[threading.Event]] = []

    def step() -> None:
        activations = threading.Event()  # anything that can be referred to weakly
        kept.append(weakref.ref(activations))
        going.set()
        looked.wait(30)

    thread = threading.Thread(target=step)
    gc.disable()
    try:
        thread.start()
        going.wait(30)
        look_at(thread.ident or 0)
        looked.set()
        thread.join(30)
        assert kept[0]() is None
    finally:
        gc.enable()
