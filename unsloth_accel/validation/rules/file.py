"""Rules about the file itself, before its keys mean anything. The reader finds these on its way."""

from __future__ import annotations

from collections.abc import Iterator

from .document import Document, Finding
from .rule_registry import EVERY, rule


@rule("nothing-to-read", on=EVERY)
def nothing_to_read(config: Document) -> Iterator[Finding]:
    """The file is not there or can't be opened, or a directory holds no config: nothing was checked.

    Reference: accelerate/commands/config/config_args.py: load_config_from_file raises FileNotFoundError.
    """
    yield from config.found.get("nothing-to-read", ())


@rule("file-too-large", on=EVERY)
def file_too_large(config: Document) -> Iterator[Finding]:
    """A file of more than 64 KiB is no config; it is not read.

    Reference: unsloth_accel/validation/rules/yaml_reader.py: MOST_BYTES; PyYAML reads about 100 KiB a second.
    """
    yield from config.found.get("file-too-large", ())


@rule("not-utf-8", on=EVERY)
def not_utf_8(config: Document) -> Iterator[Finding]:
    """accelerate opens configs as UTF-8: UTF-16 (Windows PowerShell's `>`) or Latin-1 ends in a UnicodeDecodeError.

    Reference: accelerate/commands/config/config_args.py: load_config_from_file, `open(…, encoding="utf-8")`.
    """
    yield from config.found.get("not-utf-8", ())


@rule("byte-order-mark", on=EVERY)
def byte_order_mark(config: Document) -> Iterator[Finding]:
    """Python's JSON reader refuses a text that begins with a byte order mark; the YAML reader takes it.

    Reference: json/__init__.py: loads, "Unexpected UTF-8 BOM"; accelerate/commands/config/config_args.py:
    BaseConfig.from_json_file.
    """
    yield from config.found.get("byte-order-mark", ())


@rule("control-character", on=EVERY)
def control_character(config: Document) -> Iterator[Finding]:
    """A NUL or another control character stops the YAML reader: the file is damaged or not a text.

    Reference: yaml/reader.py: Reader.check_printable, "special characters are not allowed".
    """
    yield from config.found.get("control-character", ())


@rule("empty-file", on=EVERY)
def empty_file(config: Document) -> Iterator[Finding]:
    """accelerate ends in `'NoneType' object has no attribute 'get'`, which names no file.

    Reference: accelerate/commands/config/config_args.py: load_config_from_file, `yaml.safe_load(f).get(…)`.
    """
    yield from config.found.get("empty-file", ())


@rule("not-a-mapping", on=EVERY)
def not_a_mapping(config: Document) -> Iterator[Finding]:
    """A list or a single value instead of keys and values: accelerate ends in an AttributeError.

    Reference: accelerate/commands/config/config_args.py: load_config_from_file, `yaml.safe_load(f).get(…)`.
    """
    yield from config.found.get("not-a-mapping", ())


@rule("several-documents", on=EVERY)
def several_documents(config: Document) -> Iterator[Finding]:
    """`---` between two documents: accelerate ends in a ComposerError.

    Reference: yaml/composer.py: Composer.get_single_node, "expected a single document in the stream".
    """
    yield from config.found.get("several-documents", ())


@rule("yaml-syntax", on=EVERY)
def yaml_syntax(config: Document) -> Iterator[Finding]:
    """The text is no YAML; accelerate ends in a traceback of PyYAML's.

    Reference: yaml/scanner.py and yaml/parser.py.
    """
    yield from config.found.get("yaml-syntax", ())


@rule("json-syntax", on=EVERY)
def json_syntax(config: Document) -> Iterator[Finding]:
    """A file named .json that is no JSON: accelerate reads it by JSON's rules, not YAML's, and ends in a traceback.

    Reference: accelerate/commands/config/config_args.py: load_config_from_file, `config_file.endswith(".json")`.
    """
    yield from config.found.get("json-syntax", ())


@rule("tab", on=EVERY)
def tab(config: Document) -> Iterator[Finding]:
    """YAML may not be indented by tabs; PyYAML says only "found character that cannot start any token".

    Reference: yaml/scanner.py: Scanner.fetch_more_tokens.
    """
    yield from config.found.get("tab", ())


@rule("unknown-tag", on=EVERY)
def unknown_tag(config: Document) -> Iterator[Finding]:
    """A tag such as `!!python/object/apply:os.system` asks the reader to run code. Nothing is run; accelerate's safe
    reader refuses the file with a ConstructorError.

    Reference: yaml/constructor.py: SafeConstructor.construct_undefined.
    """
    yield from config.found.get("unknown-tag", ())


@rule("duplicate-key", on=EVERY)
def duplicate_key(config: Document) -> Iterator[Finding]:
    """PyYAML takes the last of two equal keys and says nothing, so that one of the lines is a lie.

    Reference: yaml/constructor.py: BaseConstructor.construct_mapping, `mapping[key] = value`.
    """
    yield from config.found.get("duplicate-key", ())


@rule("merge-conflict", on=EVERY)
def merge_conflict(config: Document) -> Iterator[Finding]:
    """`<<` takes a key from two mappings that give it different values. PyYAML up to 6.0.3 takes that of the first in a
    list; 6.0.4 takes the last, or the first where the key is a single character.

    Reference: yaml/constructor.py: SafeConstructor.flatten_mapping, `merge_key_ids`; seen with 6.0.4.
    """
    yield from config.found.get("merge-conflict", ())


@rule("alias-bomb", on=EVERY)
def alias_bomb(config: Document) -> Iterator[Finding]:
    """Aliases that hold themselves, or each other many times over: whoever walks the values never ends.

    Reference: yaml/composer.py: Composer.compose_node returns the same node for every alias.
    """
    yield from config.found.get("alias-bomb", ())


@rule("nested-too-deeply", on=EVERY)
def nested_too_deeply(config: Document) -> Iterator[Finding]:
    """Hundreds of brackets inside each other: Python's reader ends in a RecursionError.

    Reference: yaml/composer.py: Composer.compose_node calls itself for every level.
    """
    yield from config.found.get("nested-too-deeply", ())


@rule("key-not-text", on=EVERY)
def key_not_text(config: Document) -> Iterator[Finding]:
    """A key that YAML reads as a number, a truth value (`on:`, `no:`) or null: an unknown key to accelerate, which
    refuses the file; two of different types end in a TypeError while they are sorted.

    Reference: accelerate/commands/config/config_args.py: BaseConfig.from_yaml_file, `sorted(set(…) - set(…))`.
    """
    yield from config.found.get("key-not-text", ())


@rule("yaml-value", on=EVERY)
def yaml_value(config: Document) -> Iterator[Finding]:
    """A value that looks like a date, a number or a merge to YAML and can't be one: PyYAML ends in a traceback.

    Reference: yaml/constructor.py: SafeConstructor.construct_yaml_timestamp and its like.
    """
    yield from config.found.get("yaml-value", ())


@rule("yaml-number", "warning", on=EVERY)
def yaml_number(config: Document) -> Iterator[Finding]:
    """YAML 1.1 reads 010 as octal (8) and 1:30 to base 60 (90): the number is not the one that stands there.

    Reference: yaml/constructor.py: SafeConstructor.construct_yaml_int.
    """
    yield from config.found.get("yaml-number", ())
