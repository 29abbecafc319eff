"""YAML from anyone: settings and where each of them stands, or what is wrong and where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from deft.platform.errors import UserError
from deft.workers.common.text import has_surrogates

KeyPath = tuple[str | int, ...]

MAX_BYTES = 2**20
"""No settings are larger; PyYAML would be busy with a dataset for minutes."""
MAX_DEPTH = 50
"""Mappings and lists inside each other."""
MAX_NODES = 100_000
"""Settings, those behind an alias counted each time: a few lines of aliases can mean billions."""
MAX_DIGITS = 300
"""Of a number: Python turns no more than some thousand into text, and floats have no more."""

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def read_yaml(file: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """A YAML mapping, and for each key in it where it stands (``file:line``).

    Raises:
        UserError: the file cannot be read, or there is no such mapping in it.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {_why_unreadable(error)}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{file}: larger than {MAX_BYTES:,} bytes: that is no file of settings")
    data, origins = parse_yaml(text, str(file))
    if not isinstance(data, dict):
        kind = "nothing" if data is None else f"a {type(data).__name__}"
        raise UserError(f"{file}: expected a mapping of settings, got {kind}")
    return data, origins


def _why_unreadable(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text: {error.reason} at byte {error.start}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def parse_yaml(text: str, source: str, *, lines: bool = True) -> tuple[Any, dict[KeyPath, str]]:
    """A YAML value, and for each key in it where it stands.

    Args:
        text: the YAML.
        source: where it is from.
        lines: whether places in it are told by their lines, as ``source:line``.

    Raises:
        UserError: it is no YAML, or none that settings could be made of.
    """
    check = _Check(source, lines)
    try:
        loader = yaml.SafeLoader(text)
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
        raise UserError(f"{source}: nested more than {MAX_DEPTH} deep") from None
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
        self.origins: dict[KeyPath, str] = {}
        self.num_nodes = 0

    def at(self, mark: Any) -> str:
        return f"{self.source}:{mark.line + 1}" if self.lines else self.source

    def node(self, node: yaml.Node, key: KeyPath, depth: int) -> None:
        where = self.at(node.start_mark)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise UserError(f"{where}: more than {MAX_NODES:,} settings, aliases followed")
        if depth > MAX_DEPTH:
            raise UserError(f"{where}: nested more than {MAX_DEPTH} deep")
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                at = self.at(key_node.start_mark)
                child = (*key, self.text(key_node, at))
                if child in self.origins:
                    dotted, first = ".".join(map(str, child)), self.origins[child]
                    raise UserError(f"{at}: {dotted} is given twice, first at {first}")
                self.origins[child] = at
                self.node(value_node, child, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                child = (*key, index)
                self.origins[child] = self.at(item.start_mark)
                self.node(item, child, depth + 1)
        else:
            self.scalar(node, where)

    def text(self, node: yaml.Node, where: str) -> str:
        """A key."""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in (TEXT, MERGE):
            kind = "a sequence" if isinstance(node, yaml.SequenceNode) else "a mapping"
            got = str(node.value) if isinstance(node, yaml.ScalarNode) else kind
            raise UserError(f"{where}: a key must be a text, got {got:.80}")
        self.scalar(node, where)
        return str(node.value)

    def scalar(self, node: yaml.Node, where: str) -> None:
        """Refuse what neither files nor JSON can hold."""
        if "\0" in node.value or has_surrogates(node.value):
            raise UserError(f"{where}: NUL, or half of a surrogate pair, in {node.value!r:.80}")
        if node.tag in (INTEGER, FLOAT):
            if len(node.value) > MAX_DIGITS:
                raise UserError(f"{where}: a number of {len(node.value):,} digits")
            number = yaml.constructor.SafeConstructor().construct_object(node)
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{where}: expected a finite number, got {node.value}")
