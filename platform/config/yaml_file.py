"""YAML from anyone: settings and where each of them stands, or what is wrong and where.

Numbers are read as people write them: ``1e-4`` is one. What YAML 1.1 takes for something that it
does not look like (``010`` for eight, ``1:30`` for ninety, a date) is refused with what was
probably meant; words such as ``on`` are truth values, and `Origin` remembers how they were spelled.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deft.platform.errors import UserError
from deft.workers.common.names import nearest_name
from deft.workers.common.text import has_surrogates

KeyPath = tuple[str | int, ...]
"""Where a setting stands: keys of mappings and indices of lists, from the outside in."""

MAX_BYTES = 2**20
"""Size of the largest file; PyYAML would be busy with a dataset for minutes."""
MAX_DEPTH = 50
"""Mappings and lists inside each other."""
MAX_NODES = 100_000
"""Settings, those behind an alias counted each time: a few lines of aliases can mean billions."""
MAX_DIGITS = 300
"""Digits of a number: Python turns no more than some thousand into text; floats have no more."""

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
TIMESTAMP = "tag:yaml.org,2002:timestamp"

_EXPONENT = re.compile(r"[-+]?(?:\.\d+|\d+(?:\.\d*)?)[eE][-+]?\d+$")
"""A float by YAML 1.2; by 1.1 it is a text unless it has both a point and a signed exponent."""
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_ZERO_FIRST = re.compile(r"[-+]?0(?:o[0-7]+|\d+)")
"""An octal number by YAML 1.2, or digits that are not octal: both are texts by 1.1."""
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(?::[0-5]?\d)+(?:\.[\d_]*)?")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which ``1e-4`` is a number."""


_Loader.add_implicit_resolver(FLOAT, _EXPONENT, list("-+.0123456789"))


@dataclass(frozen=True)
class Origin:
    """Where a setting is from, for messages about it."""

    place: str
    """A line of a file, or an option of the command line."""
    text: str | None = None
    """How a value without quotes was written."""


def read_yaml(file: Path) -> tuple[dict[str, Any], dict[KeyPath, Origin]]:
    """Read a YAML mapping, and for each key in it where it stands.

    Raises:
        UserError: the file cannot be read, or there is no such mapping in it.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {_why_unreadable(file, error)}") from None
    if len(content) > MAX_BYTES:
        raise UserError(
            f"{file}: larger than {MAX_BYTES:,} bytes; give a file of settings, not of data"
        )
    data, origins = parse_yaml(text, str(file))
    if not isinstance(data, dict):
        kind = "nothing" if data is None else f"a {type(data).__name__}"
        raise UserError(
            f"{file}: expected a mapping of settings, got {kind}; write lines of `key: value`"
        )
    return data, origins


def _why_unreadable(file: Path, error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8"
    if isinstance(error, FileNotFoundError):
        nearest = nearest_name(file.name, _yaml_files(file.parent))
        meant = f"did you mean {file.parent / nearest}?" if nearest else "give one that is there"
        return f"no such file; {meant}"
    if isinstance(error, IsADirectoryError):
        inside = _yaml_files(file)
        example = f", such as {file / inside[0]}" if inside else ""
        return f"a directory; give a YAML file{example}"
    if isinstance(error, PermissionError):
        return "not readable by this user; give it the right to, or another file"
    why = error.strerror if isinstance(error, OSError) else None
    return f"{why or error}; give another file"


def _yaml_files(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir() if path.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def parse_yaml(text: str, source: str, *, lines: bool = True) -> tuple[Any, dict[KeyPath, Origin]]:
    """Parse a YAML value, and for each key in it, and for all of it, where it stands.

    Args:
        text: the YAML.
        source: where it is from.
        lines: whether places in it are told by their lines, as ``source:line``.

    Raises:
        UserError: it is not YAML, or none that settings could be made of.
    """
    check = _Check(source, lines)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        check.node(node, (), 0)
        return loader.construct_document(node), check.origins
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = " ".join((getattr(error, "problem", None) or str(error)).split())
        where = check.at(mark) if mark else source
    except RecursionError:
        raise UserError(f"{source}: nested more than {MAX_DEPTH} deep; no setting is") from None
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # PyYAML's constructors raise whatever they meet: of `!!bool x` it is a KeyError.
        reason = f"a value that does not go with its tag ({type(error).__name__}: {error})"
        where = source
    raise UserError(f"{where}: not valid YAML: {reason}")


class _Check:
    """Walks through a document before values are made of it."""

    def __init__(self, source: str, lines: bool) -> None:
        self.source = source
        self.lines = lines
        self.origins: dict[KeyPath, Origin] = {}
        self.num_nodes = 0

    def at(self, mark: Any) -> str:
        return f"{self.source}:{mark.line + 1}" if self.lines else self.source

    def node(self, node: yaml.Node, key: KeyPath, depth: int) -> None:
        where = self.at(node.start_mark)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise UserError(f"{where}: more than {MAX_NODES:,} settings, aliases followed")
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: nested more than {MAX_DEPTH} deep; no setting is")
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                at = self.at(key_node.start_mark)
                child = (*key, self.text(key_node, at))
                if child in self.origins:
                    dotted, first = ".".join(map(str, child)), self.origins[child].place
                    raise UserError(f"{at}: {dotted} is given twice, first at {first}; remove one")
                self.origins[child] = Origin(at, _as_written(value_node))
                self.node(value_node, child, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                child = (*key, index)
                self.origins[child] = Origin(self.at(item.start_mark), _as_written(item))
                self.node(item, child, depth + 1)
        elif isinstance(node, yaml.ScalarNode):
            self.scalar(node, where, key)
        if not key:
            self.origins[key] = Origin(where, _as_written(node))

    def text(self, node: yaml.Node, where: str) -> str:
        """Read a key."""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in (TEXT, MERGE):
            kind = "a sequence" if isinstance(node, yaml.SequenceNode) else "a mapping"
            got = str(node.value) if isinstance(node, yaml.ScalarNode) else kind
            raise UserError(f"{where}: expected a text as key, got {got:.80}; put it in quotes")
        self.scalar(node, where, ())
        return str(node.value)

    def scalar(self, node: yaml.ScalarNode, where: str, key: KeyPath) -> None:
        """Refuse what neither files nor JSON can hold, and what is not what it looks like."""
        if "\0" in node.value or has_surrogates(node.value):
            raise UserError(
                f"{where}: {node.value!r:.80} is not text; remove NUL and unpaired surrogates"
            )
        if node.tag in (INTEGER, FLOAT) and len(node.value) > MAX_DIGITS:
            raise UserError(
                f"{where}: a number of {len(node.value):,} digits is too long; shorten it"
            )
        if (surprise := _surprise(node)) is not None:
            raise UserError(": ".join(filter(None, [where, ".".join(map(str, key)), surprise])))
        if node.tag in (INTEGER, FLOAT):
            number = yaml.constructor.SafeConstructor().construct_object(node)
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{where}: expected a finite number, got {node.value}")


def _as_written(node: yaml.Node) -> str | None:
    """Return the text of a value without quotes; None for any other."""
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return str(node.value) if plain else None


def _surprise(node: yaml.ScalarNode) -> str | None:
    """Say what YAML 1.1 makes of a value that looks like something else, and what to write."""
    text = str(node.value)
    if node.tag == TIMESTAMP:
        return f'{text} is a date in YAML; write "{text}", in quotes, for the text'
    if node.tag == INTEGER and _OCTAL.fullmatch(text):
        octal, decimal = _integer(text, 8), _integer(text, 10)
        number = octal if octal == decimal else f"{decimal} or {octal}, whichever you mean"
        return (
            f'{text} is octal in YAML 1.1 and means {octal}; write {number}, or "{text}", in '
            "quotes, for a text"
        )
    if node.tag == TEXT and node.style is None and _ZERO_FIRST.fullmatch(text):
        number = _integer(text.replace("o", ""), 8 if "o" in text else 10)
        return f'{text} is a text in YAML 1.1; write {number}, or "{text}", in quotes, for a text'
    if node.tag in (INTEGER, FLOAT) and _SEXAGESIMAL.fullmatch(text):
        number = yaml.constructor.SafeConstructor().construct_object(node)
        return (
            f"{text} is a number of base 60 in YAML 1.1 and means {number}; write {number}, or "
            f'"{text}", in quotes, for a text'
        )
    return None


def _integer(text: str, base: int) -> str:
    """Read digits of ``base``, which may have a sign and underscores, and write them as decimal."""
    digits = text.replace("_", "")
    return str(int(digits, base)) if digits.strip("+-") else "0"
