"""Launch a run whose disk, of its own, gets full at a step: `full_disk.py STEP ROOM_AT launch's words…`.

Rank 0 fills the disk of output_dir as training begins (STEP 0) or after step STEP, and makes room again after step
ROOM_AT (0: never). `-` for STEP fills nothing. With FAIL_AT in the environment rank 1 raises after that step, with
FAIL_EVALUATION the evaluation after the last step raises.
"""

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import unsloth_accel  # noqa: F401


def main(words: list[str]) -> int:
    """Launch as `unsloth-accel launch` does, with this script in the place of the method's module."""
    from unsloth_accel.cli import launch as command
    from unsloth_accel.cli.main import main
    from unsloth_accel.launch import launcher
    from unsloth_accel.launch.run_accelerate import Launch, run_accelerate

    def this_script(launch: Launch) -> None:
        module = launch.arguments.index("-m")
        arguments = (*launch.arguments[:module], __file__, *launch.arguments[module + 2 :])
        run_accelerate(replace(launch, arguments=arguments))

    launcher.run_accelerate = this_script
    assert command
    return main(["launch", *words])


def rank(words: list[str]) -> int:
    from unsloth_accel.training import process

    build = process.build_trainer

    def build_and_watch(run: Any, log: Any = None) -> Any:
        trainer = build(run, log)
        trainer.add_callback(callback(Path(run.output_dir)))
        if os.environ.get("FAIL_EVALUATION"):
            evaluate = trainer.evaluate

            def fails(*args: Any, **kwargs: Any) -> Any:
                if trainer.state.global_step == trainer.state.max_steps:
                    raise RuntimeError("the evaluation fails")
                return evaluate(*args, **kwargs)

            trainer.evaluate = fails
        return trainer

    process.build_trainer = build_and_watch
    return process.main(*words)


def callback(output_dir: Path) -> Any:
    from transformers import TrainerCallback

    filler = output_dir / "filler"

    class Fill(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.on_step_end(args, state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            first = args.process_index == 0
            if first and str(state.global_step) == os.environ["ROOM_AT"] != "0":
                filler.unlink()
            if first and str(state.global_step) == os.environ["FULL_AT"]:
                fill(filler)
            if not first and str(state.global_step) == os.environ.get("FAIL_AT"):
                raise RuntimeError("rank 1 fails")

    return Fill()


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**12))


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        sys.exit(rank(sys.argv[1:]))
    os.environ["FULL_AT"], os.environ["ROOM_AT"] = sys.argv[1:3]
    sys.exit(main(sys.argv[3:]))
