"""Document: what rules check, a file's keys and values, where each stands, and what the reader found on its way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal, TypeGuard

from ...config.safe_reader import FALSE, TRUE, Finding, Place, Repair
from ...errors import close_match
from ...hardware.hardware import Hardware

__all__ = ["Context", "Document", "Finding", "Kind", "Place", "Repair", "is_whole", "truth"]

Kind = Literal[
    "accelerate", "run", "pair", "deepspeed", "transformers-fsdp", "training-script", "unknown", "unreadable"
]
"""`pair` is a run and its accelerate config; `training-script` another project's description of a training."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Facts that are known beside the file."""

    hardware: Hardware | None = None
    """Hardware to run on; None leaves the rules out that need to know."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Options of `accelerate launch` given on the command line, by name: they win over the file's keys."""
    here: bool = False
    """Whether a run is to be launched here, so that what it names is looked at: model, rows, tokens."""
    trying: bool = False
    """Whether a fix is being tried, whose own fixes are not."""
    launching: bool = False
    """Whether `unsloth-accel launch` starts the processes, and sets what accelerate leaves out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    file: str
    kind: Kind
    values: dict[str, Any] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    """Positions by dotted key."""
    text: str = ""
    found: Mapping[str, tuple[Finding, ...]] = field(default_factory=dict)
    """Findings of the reader, by rule."""
    context: Context = field(default_factory=Context)
    others: Mapping[str, Document] = field(default_factory=dict)
    """Documents of a pair: `run` and `accelerate`."""
    flagged: Mapping[str, str] = field(default_factory=dict)
    """Dotted keys whose value is the command line's, and the flag that gave it."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key, in which a number counts the items of a list from 0."""
        values: Any = self.values
        for part in key.split("."):
            if isinstance(values, list):
                values = dict(zip(map(str, range(len(values))), values, strict=True))
            if not isinstance(values, dict) or part not in values:
                return default
            values = values[part]
        return values

    def line(self, key: str) -> int | None:
        """The line of a dotted key, or of the section that should hold it, or the first; None without a text."""
        while key:
            if key in self.places:
                return self.places[key].line
            key = key.rpartition(".")[0]
        return 1 if self.text else None

    def problem(self, key: str, consequence: str, fix: str, *repairs: Repair, mild: bool = False) -> Finding:
        """A problem with `key` of this file; the registry adds the rule and its severity.

        A repair without a value, to set or to rename to, is left out. `mild` makes it a warning where the rule is an
        error: here the launch would train as it should. What a flag of the command line gave is told of the flag.
        """
        flag = self.flagged.get(key)
        return Finding(
            key=flag or key,
            value=self.get(key),
            consequence=consequence,
            fix=fix,
            file="" if flag else self.file,
            line=None if flag else self.line(key),
            repairs=tuple(one for one in repairs if not flag and (one.kind == "remove" or one.value is not None)),
            severity="warning" if mild else "error",
        )

    def unknown_key(self, key: str, near: str | None, consequence: str, mild: bool = False) -> Finding:
        """A problem with `key`, which is to be renamed to `near` where that is surely meant."""
        fix = f"did you mean {near}?" if near else "remove it"
        sure = near if is_slip(key.rpartition(".")[2], near) else None
        return self.problem(key, consequence, fix, Repair(kind="rename", key=key, value=sure), mild=mild)

    def unknown_word(self, key: str, known: Sequence[str], consequence: str) -> Finding:
        """A problem with the value of `key`, which is none of `known` and may be meant for the nearest of them."""
        near = close_match(str(self.get(key)).upper(), known)
        fix = f"did you mean {near}?" if near else f"use one of: {', '.join(known)}."
        return self.problem(key, consequence, fix, Repair(kind="set", key=key, value=near))

    def section(self, name: str, prefix: str = "") -> dict[str, str]:
        """The dotted keys of a section by their name without `prefix`, which accelerate lets one leave out."""
        values = self.values.get(name)
        if not isinstance(values, dict):
            return {}
        return {str(key).removeprefix(prefix): f"{name}.{key}" for key in values}

    # What follows is about accelerate configs.

    @property
    def type(self) -> Any:
        """Value of distributed_type."""
        return self.values.get("distributed_type")

    @property
    def local(self) -> bool:
        """Whether it is launched here, and not on SageMaker, whose configs have other keys."""
        return self.values.get("compute_environment") != "AMAZON_SAGEMAKER"

    @property
    def num_processes(self) -> int | None:
        """Number of processes over all machines; None when it is missing or no number."""
        return self.whole("num_processes")

    @property
    def num_machines(self) -> int:
        return max(self.whole("num_machines") or 1, 1)

    @property
    def replicates(self) -> bool:
        """Whether several processes start as plain DDP, each with the whole model."""
        return self.type == "MULTI_GPU" and (self.num_processes != 1 or self.num_machines > 1)

    @property
    def fsdp(self) -> dict[str, str]:
        """Dotted keys of fsdp_config by their name without `fsdp_`."""
        return self.section("fsdp_config", "fsdp_")

    @property
    def fsdp_version(self) -> int | None:
        """FSDP version, 1 (also where it is missing) or 2; None when this is no FSDP config or the version is
        another."""
        if self.type != "FSDP" or not isinstance(self.values.get("fsdp_config"), dict):
            return None
        key = self.fsdp.get("version")
        version = str(self.get(key)) if key else "1"
        return int(version) if version in ("1", "2") else None

    def fsdp_key(self, name: str, *versions: int) -> str | None:
        """The dotted key of an fsdp_config key; None without it, and where this is FSDP of no or another version."""
        return self.fsdp.get(name) if self.fsdp_version in (versions or (1, 2)) else None

    def fsdp_word(self, name: str) -> str | None:
        """The value of an fsdp_config key in the capitals that accelerate compares; None when it is no text."""
        value = self.get(self.fsdp[name]) if name in self.fsdp else None
        return value.upper() if isinstance(value, str) else None

    def whole(self, key: str) -> int | None:
        """The value of `key` if it is a whole number, also in quotes: what is wrong with it is told at once."""
        value = self.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
            return int(value)
        return value if is_whole(value) else None

    @property
    def dynamo_backends(self) -> list[str]:
        """The dotted keys that name a backend, in dynamo_config or, as it was before, at the top level."""
        section = self.section("dynamo_config", "dynamo_")
        keys = [section["backend"]] if "backend" in section else []
        return [*keys, "dynamo_backend"] if "dynamo_backend" in self.values else keys

    def truth(self, key: str | None, default: bool = False) -> bool | None:
        """The value of `key` as accelerate's `str_to_bool` reads it; None when it is not a boolean."""
        value = self.get(key, default) if key else default
        return truth(value)


def is_slip(word: str, near: str | None) -> bool:
    """Return whether `word` is `near` but for a letter too many or too few, two that are swapped, a plural, case and
    underscores. Another letter may make another word: use_gpu is no slip for use_cpu, nor max_epochs for max_steps."""
    if near is None or re.findall(r"\d", word) != re.findall(r"\d", near):
        return False
    one, other = (re.sub("[-_]|e?s$", "", text.lower()) for text in (word[:200], near))
    steps = SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    if any(kind == "replace" for kind, *_ in steps):
        return False
    changed = [max(b - a, d - c) for kind, a, b, c, d in steps if kind != "equal"]
    return sum(changed) <= 1 or (changed == [1, 1] and sorted(one) == sorted(other))


def is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def truth(value: Any) -> bool | None:
    """A truth value as accelerate's `str_to_bool` reads it; None when it is none."""
    word = str(value).lower()
    return True if word in TRUE else False if word in FALSE else None
