"""The words after `unsloth-accel launch`, taken apart: the run or script, its overrides, and accelerate's own flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config.read_run import is_override
from ..config.run_config import IF_ANY
from ..errors import ConfigError, Problem, close_match
from ..validation.rules import RULES, SUFFIXES
from .run_accelerate import known_flags, takes_value

_RESUME_IF_ANY = f"training.resume={IF_ANY}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `unsloth-accel launch` was asked for, taken apart."""

    run_yaml: str | None = None
    overrides: tuple[str, ...] = ()
    accelerate_flags: tuple[str, ...] = ()
    """Flags for accelerate in run mode; in script mode all words, script and its arguments included."""
    dry_run: bool = False
    allowed: frozenset[str] = frozenset()
    """Ids of the validation rules whose errors are to be warnings."""


def parse(tokens: Sequence[str]) -> Request:
    """Take apart what follows `unsloth-accel launch`.

    Run mode has a run's YAML as its first word that is no flag or flag's value; anything else is script mode, where all
    words but `--dry-run` and `--allow` are `accelerate launch`'s. Raises `ConfigError` when there is nothing to launch,
    and for a rule or a flag that isn't there.
    """
    flags: list[str] = []
    overrides: list[str] = []
    run_yaml: str | None = None
    dry_run = False
    allowed: set[str] = set()
    words = list(tokens)
    while words:
        word = words.pop(0)
        if word == "--dry-run":
            dry_run = True
        elif word.partition("=")[0] == "--allow":
            allowed |= _rules(word.partition("=")[2] or (words.pop(0) if words else ""))
        elif word == "--resume-if-any":
            overrides.append(_RESUME_IF_ANY)
        elif word.startswith("-"):
            _check_flag(word.partition("=")[0])
            flags.append(word)
            if "=" not in word and words and takes_value(word):
                flags.append(words.pop(0))
        elif is_override(word):
            overrides.append(word)
        elif run_yaml is not None:
            fix = "write key=value, for example training.max_steps=2"
            raise ConfigError(Problem(key=word, consequence="is neither an override nor a flag.", fix=fix))
        elif word.endswith(SUFFIXES):
            run_yaml = word
        elif _RESUME_IF_ANY in overrides:
            consequence = "is for launch RUN.yaml: what a script of yours goes on from, it says itself."
            fix = "drop it; trainer.train(resume_from_checkpoint=True) goes on from the newest whole checkpoint"
            raise ConfigError(Problem(key="--resume-if-any", consequence=consequence, fix=fix))
        else:
            return Request(accelerate_flags=(*flags, word, *words), dry_run=dry_run, allowed=frozenset(allowed))
    if run_yaml is None:
        fix = "unsloth-accel launch RUN.yaml, or unsloth-accel launch --config_file X.yaml script.py"
        raise ConfigError(Problem(key="launch", consequence="there is nothing to launch.", fix=fix))
    if allowed:
        consequence = "is for a config of yours: that of a run is made for it."
        raise ConfigError(Problem(key="--allow", consequence=consequence, fix="drop it, and change the run"))
    return Request(run_yaml=run_yaml, overrides=tuple(overrides), accelerate_flags=tuple(flags), dry_run=dry_run)


def _check_flag(flag: str) -> None:
    """Raise `ConfigError` for a flag of nobody's: whether the word behind it is its value or the script is unknown."""
    known = {"--dry-run", "--allow", "--resume-if-any", *known_flags()}
    if flag not in known:
        near = close_match(flag, known)
        fix = (
            f"did you mean {near}?" if near else "accelerate launch --help lists its flags; a script's stand behind it"
        )
        raise ConfigError(Problem(key=flag, consequence="is no flag of launch, nor of accelerate's.", fix=fix))


def _rules(words: str) -> set[str]:
    """Return the rules that a word of --allow names, with commas between them."""
    named = {word.strip() for word in words.split(",")}
    unknown = sorted(named - set(RULES))
    if unknown:
        near = close_match(unknown[0], RULES)
        consequence = "is no rule of validate." if unknown[0] else "needs the id of a rule."
        fix = f"did you mean {near}?" if near else "the id that stands in brackets behind the error"
        raise ConfigError(Problem(key="--allow", value=unknown[0] or None, consequence=consequence, fix=fix))
    return named


def own_overrides(flags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split accelerate's flags from those that the plan decides: these become overrides, so that the plan stays true.

    Raises `ConfigError` for flags that would contradict the plan.
    """
    kept: list[str] = []
    overrides: list[str] = []
    words = [part for word in flags for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while words:
        word = words.pop(0)
        name = word.lstrip("-").replace("-", "_")
        if name in ("num_processes", "num_process") and words:
            overrides.append(f"distributed.num_processes={words.pop(0)}")
        elif name in ("cpu", "use_cpu"):
            overrides.append("distributed.device=cpu")
        elif name == "mixed_precision" and words:
            precision = words.pop(0)
            if precision not in ("no", "fp16", "bf16"):
                fix = "use one of: no, fp16, bf16"
                raise ConfigError(Problem(key=word, value=precision, consequence="unknown precision.", fix=fix))
            overrides += [f"training.{kind}={str(kind == precision).lower()}" for kind in ("bf16", "fp16")]
        elif name in _DECIDED:
            consequence = "contradicts the plan that `launch RUN.yaml` makes."
            raise ConfigError(Problem(key=word, consequence=consequence, fix=_DECIDED[name]))
        else:
            kept.append(word)
            if words and takes_value(word):
                kept.append(words.pop(0))
    return kept, overrides


_DECIDED = {
    "config_file": "drop it (the config is generated), or launch your own script with it",
    "gpu_ids": "set CUDA_VISIBLE_DEVICES for the whole command",
    "num_machines": "launch your own script with it; a run is planned for one machine so far",
    "machine_rank": "launch your own script with it; a run is planned for one machine so far",
    "use_megatron_lm": "launch your own script with it",
    "use_parallelism_config": "launch your own script with it",
    "multi_gpu": "drop it, or set distributed.strategy",
    "use_fsdp": "set distributed.strategy",
    "use_deepspeed": "launch your own script with it",
    "tpu": "launch your own script with it",
    "module": "drop it (the training module is ours)",
    "m": "drop it (the training module is ours)",
    "no_python": "drop it (the training module is ours)",
}
