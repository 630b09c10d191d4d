"""Rules about the file itself, before its keys mean anything. The reader finds these on its way."""

from __future__ import annotations

from dataclasses import replace

from ...errors import Severity
from .rule_registry import EVERY, add_rule


def _found_by_the_reader(id: str, happens: str, reference: str, severity: Severity = "error") -> None:
    """Register a rule that tells what the reader found under its id."""
    add_rule(id, lambda config: iter(config.found.get(id, ())), happens, reference, severity, EVERY)


_found_by_the_reader(
    "nothing-to-read",
    "The file is not there or can't be opened, or a directory holds no config: nothing was checked.",
    "accelerate/commands/config/config_args.py: load_config_from_file raises FileNotFoundError.",
)
_found_by_the_reader(
    "file-too-large",
    "A file of more than 64 KiB is no config; it is not read.",
    "unsloth_accel/config/safe_reader.py: MOST_BYTES; PyYAML reads about 100 KiB a second.",
)
_found_by_the_reader(
    "not-utf-8",
    "accelerate opens configs as UTF-8: UTF-16 (Windows PowerShell's `>`) or Latin-1 ends in a UnicodeDecodeError.",
    'accelerate/commands/config/config_args.py: load_config_from_file, `open(…, encoding="utf-8")`; '
    "held true by a test.",
)
_found_by_the_reader(
    "byte-order-mark",
    "Python's JSON reader refuses a text that begins with a byte order mark; the YAML reader takes it.",
    'json/__init__.py: loads, "Unexpected UTF-8 BOM"; accelerate/commands/config/config_args.py: '
    "BaseConfig.from_json_file; held true by a test.",
)
_found_by_the_reader(
    "control-character",
    "A NUL or another control character stops the YAML reader: the file is damaged or not a text.",
    'yaml/reader.py: Reader.check_printable, "special characters are not allowed"; held true by a test.',
)
_found_by_the_reader(
    "empty-file",
    "accelerate ends in `'NoneType' object has no attribute 'get'`, which names no file.",
    "accelerate/commands/config/config_args.py: load_config_from_file, `yaml.safe_load(f).get(…)`; "
    "held true by a test.",
)
_found_by_the_reader(
    "not-a-mapping",
    "A list or a single value instead of keys and values: accelerate ends in an AttributeError.",
    "accelerate/commands/config/config_args.py: load_config_from_file, `yaml.safe_load(f).get(…)`; "
    "held true by a test.",
)
_found_by_the_reader(
    "several-documents",
    "`---` between two documents: accelerate ends in a ComposerError.",
    'yaml/composer.py: Composer.get_single_node, "expected a single document in the stream"; held true by a test.',
)
_found_by_the_reader(
    "yaml-syntax",
    "The text is no YAML; accelerate ends in a traceback of PyYAML's.",
    "yaml/scanner.py and yaml/parser.py; held true by a test.",
)
_found_by_the_reader(
    "json-syntax",
    "A file named .json that is no JSON: accelerate reads it by JSON's rules, not YAML's, and ends in a traceback.",
    'accelerate/commands/config/config_args.py: load_config_from_file, `config_file.endswith(".json")`; '
    "held true by a test.",
)
_found_by_the_reader(
    "tab",
    'YAML may not be indented by tabs; PyYAML says only "found character that cannot start any token".',
    "yaml/scanner.py: Scanner.fetch_more_tokens; held true by a test.",
)
_found_by_the_reader(
    "unknown-tag",
    "A tag such as `!!python/object/apply:os.system` asks the reader to run code. Nothing is run; accelerate's safe "
    "reader refuses the file with a ConstructorError.",
    "yaml/constructor.py: SafeConstructor.construct_undefined; held true by a test.",
)
add_rule(
    "duplicate-key",
    lambda config: (
        replace(found, severity="error" if config.kind == "run" else "warning")
        for found in config.found.get("duplicate-key", ())
    ),
    "PyYAML takes the last of two equal keys and says nothing: the other line has no effect, which is a warning. The "
    "reader of a run.yaml refuses it.",
    "yaml/constructor.py: BaseConstructor.construct_mapping, `mapping[key] = value`; omegaconf/_yaml.py: "
    '"found duplicate key"; held true by a test.',
    "error",
    EVERY,
)
_found_by_the_reader(
    "merge-conflict",
    "`<<` takes a key from two mappings that give it different values. PyYAML up to 6.0.3 takes that of the first in"
    " a list; 6.0.4 takes the last, or the first where the key is a single character.",
    "yaml/constructor.py: SafeConstructor.flatten_mapping, `merge_key_ids`; seen with 6.0.4.",
    "warning",
)
_found_by_the_reader(
    "alias-bomb",
    "Aliases that hold themselves, or each other many times over: reading the values never ends.",
    "yaml/composer.py: Composer.compose_node returns the same node for every alias.",
)
_found_by_the_reader(
    "nested-too-deeply",
    "Hundreds of brackets inside each other: Python's reader ends in a RecursionError.",
    "yaml/composer.py: Composer.compose_node calls itself for every level; held true by a test.",
)
_found_by_the_reader(
    "key-not-text",
    "A key that YAML reads as a number, a truth value (`on:`, `no:`) or null: an unknown key to accelerate, which "
    "refuses the file; two of different types end in a TypeError while they are sorted.",
    "accelerate/commands/config/config_args.py: BaseConfig.from_yaml_file, `sorted(set(…) - set(…))`; "
    "held true by a test.",
)
_found_by_the_reader(
    "yaml-value",
    "A value that looks like a date, a number or a merge to YAML and can't be one: PyYAML ends in a traceback.",
    "yaml/constructor.py: SafeConstructor.construct_yaml_timestamp and its like; held true by a test.",
)
_found_by_the_reader(
    "yaml-number",
    "YAML 1.1 reads 010 as octal (8) and 1:30 to base 60 (90): the number is not the one that stands there.",
    "yaml/constructor.py: SafeConstructor.construct_yaml_int; held true by a test.",
    "warning",
)
