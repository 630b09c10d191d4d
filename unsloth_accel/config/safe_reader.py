"""Reading a user's YAML or JSON safely: no tag runs code, no alias explodes, no pipe is waited for, and every key knows
its line.

PyYAML's composer builds the tree of nodes, which runs nothing; values are then made from it here. Every file of keys
and values that somebody may have written is read by this module; `files.load_json` reads what programs write.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import Problem, first_line, yaml_fault
from ..files import TooLarge, read_bytes

MOST_BYTES = 64 * 1024
"""Largest config in bytes: one has a few kilobytes, and a larger file is of another kind."""
MOST_VALUES = 100_000
"""Most values once aliases are followed. A file of this size has fewer without aliases; nine nested lists of nine
aliases would be 400 million."""
MOST_DEPTH = 32
"""Most sections and lists inside each other: none of ours has ten, and OmegaConf needs a dozen calls for each."""
MOST_NUMBER = 10**18
_MOST_DIGITS = 1000
"""Python refuses to read decimal numbers of 4,300."""
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = {
    *("null", "bool", "int", "float", "binary", "timestamp", "str", "seq", "map", "set", "omap", "pairs", "merge"),
    "value",
}
_NOT_TEXT = re.compile(r"[^\x09\x0A\x0D\x20-\x7E\x85\xA0-\uD7FF\uE000-\uFFFD\U00010000-\U0010ffff]")
_NO_SETTING = re.compile(r"[\x00\uD800-\uDFFF]")
"""What a value may spell out, and neither a file's name nor UTF-8 can hold: a NUL, and half of a character."""
_BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
TRUE, FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
"""Words of accelerate's `str_to_bool` (accelerate/utils/environment.py), in small letters."""
_WARNINGS = ("yaml-number",)
"""Rules that tell of what is read, and perhaps not meant; the others of what can't be."""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One edit of the source text: give `key` a value or another name, drop its line, or write the file as UTF-8."""

    kind: Literal["set", "rename", "remove", "add", "utf-8"]
    key: str = ""
    value: Any = None
    """The new value (`set`, `add`) or the new name (`rename`)."""


@dataclass(frozen=True, kw_only=True)
class Finding(Problem):
    """A problem with the repairs that mend it; none where the fix is a choice."""

    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Position of a key and its value: the line from 1, and offsets into the text."""

    line: int
    key: tuple[int, int]
    value: tuple[int, int]
    plain: bool
    """Whether the key begins its own line and its value ends on it, so that the line can go."""
    own: bool
    """Whether it is written and read once: not inside an alias or a merge, where an edit would change other keys."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """A file of keys and values, as far as it could be read."""

    file: str
    readable: bool
    values: dict[str, Any]
    places: Mapping[str, Place]
    """Positions by dotted key."""
    text: str
    found: Mapping[str, tuple[Finding, ...]]
    """What is wrong with it, by rule (validation.rules.file)."""

    @property
    def problems(self) -> list[Finding]:
        return [finding for findings in self.found.values() for finding in findings]


@dataclass
class _Reader:
    """One file on its way to a `Read`."""

    file: str
    dates: bool = True
    """Whether what looks like a date becomes one, as in accelerate's reader; OmegaConf's leaves it as text."""
    found: dict[str, list[Finding]] = field(default_factory=lambda: defaultdict(list))
    places: dict[str, Place] = field(default_factory=dict)
    text: str = ""
    shared: set[int] = field(default_factory=set)
    """Ids of the nodes that several keys lead to."""
    told: set[int] = field(default_factory=set)
    """Mappings whose mixed merges have been told; every alias leads there again."""

    def tell(self, rule: str, key: str, consequence: str, fix: str, line: int | None = None, *repairs: Repair) -> None:
        self.found[rule].append(
            Finding(
                key=key,
                consequence=consequence,
                fix=fix,
                file=self.file,
                line=line if self.file else None,
                repairs=repairs,
                rule=rule,
                severity="warning" if rule in _WARNINGS else "error",
            )
        )


class _Unreadable(Exception):
    """Failure to read the file; its arguments are the rule, the consequence, the fix and the line."""


def read_yaml(path: str | Path, *, dates: bool = True) -> Read:
    """Read the file at `path`, JSON by its name's end; raises nothing: `problems` say what is wrong with it.

    Its values are those that PyYAML's safe reader makes, but for `dates`: without, they stay text.
    """
    reader = _Reader(file=str(path), dates=dates)
    return _read(reader, lambda: _values(reader, Path(path)))


def read_yaml_text(text: str, file: str, *, dates: bool = True) -> Read:
    """Read a text as `read_yaml` reads that of `file`."""
    reader = _Reader(file=file, text=text, dates=dates)
    return _read(reader, lambda: _parsed(reader))


def override_problems(key: str, text: str) -> list[Finding]:
    """Say what is wrong with a value for `key` that is given as YAML outside of a file, on a command line."""
    reader = _Reader(file="", text=text, dates=False)
    return _read(reader, lambda: {key: _override(reader, key)} if text.strip() else {}).problems


def _override(reader: _Reader, key: str) -> Any:
    node = _composed(reader)
    _check_affordable(reader, node)
    return _value(reader, node, key, own=False)


def _read(reader: _Reader, values_of: Callable[[], dict[str, Any]]) -> Read:
    values: dict[str, Any] = {}
    readable = False
    try:
        values, readable = values_of(), True
    except _Unreadable as error:
        rule, *said = error.args
        reader.tell(rule, "(file)", *said)
    except RecursionError:
        reader.tell("nested-too-deeply", "(file)", *_TOO_DEEP)
    return Read(
        file=reader.file,
        readable=readable,
        values=values,
        places=reader.places,
        text=reader.text,
        found={rule: tuple(findings) for rule, findings in reader.found.items()},
    )


_TOO_DEEP = ("is nested too deeply to be read.", "write sections of keys and values")


def _values(reader: _Reader, path: Path) -> dict[str, Any]:
    try:
        data = read_bytes(path, MOST_BYTES)
    except TooLarge:
        consequence = f"is larger than {MOST_BYTES // 1024} KiB, so it is not a config."
        raise _Unreadable("file-too-large", consequence, "name the config file") from None
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        fix = "check the path; unsloth-accel init writes a run.yaml, unsloth-accel config an accelerate config"
        if "=" in path.name:
            changed = shlex.quote(str(path))
            fix = f"unsloth-accel launch RUN.yaml {changed} --dry-run, which checks a run with changed keys"
        raise _Unreadable("nothing-to-read", f"{reason}.", fix) from None
    reader.text = _decoded(reader, data, json_file=path.suffix == ".json").replace("\r\n", "\n")
    return _parsed(reader)


def _decoded(reader: _Reader, data: bytes, json_file: bool) -> str:
    """Decode the text, in whatever encoding it is; other ones than UTF-8 are told."""
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), None)
    if encoding is None and b"\x00" in data[:64] and len(data) > 3:
        zeros = data[0:64:2].count(0), data[1:64:2].count(0)
        half = len(data[:64]) // 2
        # Latin text in UTF-16 has a zero in every other byte.
        encoding = "utf-16-be" if zeros[0] >= half - 1 else "utf-16-le" if zeros[1] >= half - 1 else None
    again = "save the file as UTF-8"
    if encoding is not None:
        name = encoding.upper().removesuffix("-LE").removesuffix("-BE")
        consequence = f"is {name}, and configs are read as UTF-8 only."
        reader.tell("not-utf-8", "(file)", consequence, again, 1, Repair(kind="utf-8"))
        return data.decode(encoding, errors="replace").removeprefix("\ufeff")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        consequence = f"is not UTF-8 text (byte {error.start}), but probably Latin-1 or Windows-1252."
        reader.tell("not-utf-8", "(file)", consequence, again, line, Repair(kind="utf-8"))
        return data.decode("latin-1")
    if json_file and text.startswith("\ufeff"):
        consequence = "begins with a byte order mark, at which Python's JSON reader stops."
        reader.tell("byte-order-mark", "(file)", consequence, f"{again} without BOM", 1, Repair(kind="utf-8"))
    return text.removeprefix("\ufeff")


def _parsed(reader: _Reader) -> dict[str, Any]:
    odd = _NOT_TEXT.search(reader.text)
    if odd:
        line = reader.text.count("\n", 0, odd.start()) + 1
        consequence = f"holds the character {odd.group()!r}, which no YAML or JSON text may."
        raise _Unreadable("control-character", consequence, "remove it, or check that it is a text file", line)
    if not reader.text.strip():
        raise _Unreadable(
            "empty-file",
            "is empty.",
            "write keys and values into it: unsloth-accel init begins a run, unsloth-accel config an accelerate config",
            1,
        )
    if reader.file.endswith(".json"):
        _check_json(reader.text)
    node = _composed(reader)
    if not isinstance(node, yaml.MappingNode):
        what = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise _Unreadable("not-a-mapping", f"is {what}, not keys and values.", "write key: value lines", 1)
    _check_affordable(reader, node)
    return _mapping(reader, node, "", own=True)


def _check_json(text: str) -> None:
    """Check with JSON's own reader; its numbers and words are like YAML's, so that the values are taken from there."""
    try:
        json.loads(text)
    except ValueError as error:
        fix = "correct it there, or name the file .yaml"
        raise _Unreadable(
            "json-syntax", f"is not JSON: {first_line(error)}.", fix, getattr(error, "lineno", None)
        ) from None


def _composed(reader: _Reader) -> yaml.Node:
    text = reader.text
    if reader.file.endswith(".json"):
        text = text.replace("\t", " ")  # JSON may be indented by tabs; offsets stay
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        at = text[mark.index : mark.index + 1] if mark and mark.index is not None else ""
        if at == "\t":
            consequence = "is indented by a tab, which YAML doesn't allow: the file can't be read."
            raise _Unreadable("tab", consequence, "indent with spaces", line) from None
        raise _Unreadable("yaml-syntax", yaml_fault(error), "correct the YAML there", line) from None
    except (ValueError, IndexError, OverflowError) as error:  # an escape beyond Unicode
        raise _Unreadable("yaml-syntax", f"{first_line(error)}.", "correct the YAML") from None
    if len(nodes) > 1:
        line = nodes[1].start_mark.line + 1
        consequence = "holds several documents (---), and only one can be read."
        raise _Unreadable("several-documents", consequence, "one file for each", line)
    if not nodes:
        raise _Unreadable("empty-file", "has comments only.", "write keys and values below them", 1)
    return nodes[0]


def _check_affordable(reader: _Reader, root: yaml.Node) -> None:
    """Refuse a tree that doesn't stay small and finite when its aliases are followed."""
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> tuple[int, int]:
        """Return the number of values and the number of levels."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        if id(node) in open_nodes:
            return MOST_VALUES + 1, 0  # it holds itself
        if id(node) in sizes:
            reader.shared.add(id(node))
        else:
            open_nodes.add(id(node))
            pairs = isinstance(node, yaml.MappingNode)
            parts = [size(part) for part in (itertools.chain.from_iterable(node.value) if pairs else node.value)]
            sizes[id(node)] = 1 + sum(n for n, _ in parts), 1 + max((levels for _, levels in parts), default=0)
            open_nodes.discard(id(node))
        return sizes[id(node)]

    values, levels = size(root)
    if values > MOST_VALUES:
        consequence = (
            f"its aliases hold themselves, or more than {MOST_VALUES} values: reading on could fill the memory."
        )
        raise _Unreadable("alias-bomb", consequence, "write the values out", root.start_mark.line + 1)
    if levels > MOST_DEPTH:
        raise _Unreadable("nested-too-deeply", *_TOO_DEEP)


def _mapping(reader: _Reader, node: yaml.MappingNode, prefix: str, own: bool) -> dict[str, Any]:
    """Keys and values of a mapping; `own` is false where an alias or a merge leads here."""
    own = own and id(node) not in reader.shared
    values: dict[str, Any] = {}
    merged: list[tuple[int, dict[str, Any]]] = []
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        if key_node.tag == f"{_TAG}merge":
            merged += [(key_node.start_mark.line + 1, one) for one in _merged(reader, value_node, prefix)]
            continue
        key = _key(reader, key_node)
        if key is None:
            continue
        line = key_node.start_mark.line + 1
        if key in lines:
            value = _value(reader, value_node, f"{prefix}{key}", own=False)
            consequence = f"is there twice, in lines {lines[key]} and {line}; the last one wins silently."
            repairs = [Repair(kind="remove", key=f"{prefix}{key}")] if own and values[key] == value else []
            reader.tell("duplicate-key", f"{prefix}{key}", consequence, "keep one of them", line, *repairs)
            values[key] = value
            if own:
                reader.places[f"{prefix}{key}"] = _place(reader, node, key_node, value_node, own)
            continue
        lines[key] = line
        reader.places[f"{prefix}{key}"] = _place(reader, node, key_node, value_node, own)
        values[key] = _value(reader, value_node, f"{prefix}{key}", own)
    taken: dict[str, Any] = {}
    for line, one in merged:
        for key in one.keys() & taken.keys() - values.keys():
            if id(node) not in reader.told and repr(one[key]) != repr(taken[key]):
                both = f"takes {key} from several mappings, as {one[key]!r} and {taken[key]!r}"
                consequence = f"{both}; PyYAML's versions don't agree on which of them wins."
                reader.tell("merge-conflict", f"{prefix}<<", consequence, f"write {key} itself beside <<", line)
        taken |= one
    reader.told.add(id(node))
    return {**taken, **values}


def _merged(reader: _Reader, node: yaml.Node, prefix: str) -> list[dict[str, Any]]:
    """The mappings whose keys `<<` takes, the one that wins last."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found = []
    for part in nodes:
        if isinstance(part, yaml.MappingNode):
            found.append(_mapping(reader, part, prefix, own=False))
        else:
            line = node.start_mark.line + 1
            consequence = "can only take keys from a mapping; YAML readers stop here."
            reader.tell("yaml-value", f"{prefix}<<", consequence, "point it to an anchor of a mapping", line)
    return found[::-1]


def _key(reader: _Reader, node: yaml.Node) -> str | None:
    scalar = isinstance(node, yaml.ScalarNode)
    value = _value(reader, node, "", own=False) if scalar else None
    if isinstance(value, str):
        return value
    shown = str(node.value) if scalar else "a list or mapping"
    what = {bool: "a truth value", int: "a number"}.get(type(value), "no text")
    consequence = f"this key is {what} to YAML, and no key of a config is."
    fix = "write it in quotes, or correct its indentation"
    reader.tell("key-not-text", shown[:80], consequence, fix, node.start_mark.line + 1)
    return shown if scalar else None


def _value(reader: _Reader, node: yaml.Node, key: str, own: bool) -> Any:
    line = node.start_mark.line + 1
    if not (node.tag.startswith(_TAG) and node.tag.removeprefix(_TAG) in _KNOWN_TAGS):
        shown = node.tag.replace(_TAG, "!!")
        consequence = f"has the tag {shown}, which safe YAML readers refuse; nothing of it was run."
        reader.tell("unknown-tag", key, consequence, "write the plain value", line)
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(reader, node, f"{key}.", own)
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            reader.places[f"{key}.{place}"] = _place(reader, node, item, item, own=False)
        return [_value(reader, item, f"{key}.{place}", own) for place, item in enumerate(node.value)]
    if node.tag == f"{_TAG}timestamp" and not reader.dates:
        return node.value
    if node.tag == f"{_TAG}int" and len(node.value) > _MOST_DIGITS:
        reader.tell("yaml-value", key, "is too large a number for any setting.", "correct it", line)
        return None
    try:
        value = yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError, KeyError, AttributeError, TypeError) as error:
        consequence = f"is not a value that YAML can make: {first_line(error)}."
        reader.tell("yaml-value", key, consequence, "write it in quotes, or correct it", line)
        return None
    if isinstance(value, int) and abs(value) > MOST_NUMBER:
        reader.tell("yaml-value", key, "is too large a number for any setting.", "correct it", line)
        return None
    if isinstance(value, str) and (odd := _NO_SETTING.search(value)):
        consequence = f"holds the character {odd.group()!r}, which no path, name or file can."
        reader.tell("control-character", key, consequence, "remove it", line)
        return None
    if getattr(node, "style", None) is None and isinstance(value, int | float) and not isinstance(value, bool):
        written = node.value.replace("_", "").lstrip("+-")
        how = "to base 60" if ":" in written else "as octal" if re.fullmatch(r"0[0-7]+", written) else ""
        if how:
            consequence = f"YAML 1.1 reads {node.value} {how}: the value is {value}."
            reader.tell("yaml-number", key, consequence, f"write {value}, or '{node.value}' in quotes", line)
    return value


def _place(reader: _Reader, parent: yaml.Node, key: yaml.Node, value: yaml.Node, own: bool) -> Place:
    start, end = key.start_mark, value.end_mark
    begins = not reader.text[: start.index].rpartition("\n")[2].strip()
    # An alias's node stands where its anchor is; nothing there is this key's.
    here = value.start_mark.index >= key.end_mark.index and id(value) not in reader.shared
    here = here and reader.text[value.start_mark.index : value.start_mark.index + 1] not in ("&", "*", "!")
    return Place(
        line=start.line + 1,
        key=(start.index, key.end_mark.index),
        value=(value.start_mark.index, end.index) if here else (key.end_mark.index, key.end_mark.index),
        plain=begins and end.line == start.line and not getattr(parent, "flow_style", False),
        own=own and here,
    )
