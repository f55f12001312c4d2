"""YAML as an option's declared type reads it: a text stays as it is written, whatever YAML would make of it.

YAML 1.1 guesses types: 20241126_0930 is a number, 0123 another (octal), 12:30 a third (of base 60), off is false. Here
the option's type comes first; where it leaves the choice (``Any``), only plain numbers are numbers.
"""

import re
import typing
from collections.abc import Iterator
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """With the guesses that are left."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._flat: dict[yaml.Node, list[tuple[str, yaml.Node]]] = {}

    def pairs(self, node: yaml.MappingNode) -> list[tuple[str, yaml.Node]]:
        """The keys, as they are written, and what belongs to them. Raises ConstructorError for keys that cannot be."""
        if node not in self._flat:
            written = [key.value for key, _ in node.value if key.tag != f"{_TAG}merge"]
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key that is no text", key.start_mark)
                if written.count(key.value) > 1:
                    said = f"found duplicate key {key.value}"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            self.flatten_mapping(node)
            self._flat[node] = list({key.value: below for key, below in node.value}.items())  # merged keys come first
        return self._flat[node]


for _name, _pattern, _first in (
    ("bool", "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


class Written:
    """A part of a YAML text whose types are not decided yet."""

    def __init__(self, loader: _Loader, node: yaml.Node, raw: str | None = None) -> None:
        self._loader, self._node, self._raw = loader, node, raw

    def entries(self) -> Iterator[tuple[str, "Written"]] | None:
        """The keys, as they are written, and values of a mapping; None for anything else."""
        if not isinstance(self._node, yaml.MappingNode):
            return None
        return ((key, Written(self._loader, node)) for key, node in self._loader.pairs(self._node))

    def value(self, hint: Any) -> Any:
        """What it means where an option is of this type (``Any``: what YAML says)."""
        if self._raw is not None and hint is str:
            return self._raw
        if self._raw is not None and hint == list[str] and isinstance(self._node, yaml.ScalarNode):
            return _listed(self._raw)
        return self._value(self._node, hint, ())

    def entry(self, hint: Any) -> Any:
        """As ``value``, of a dictionary's entry, which null removes."""
        null = self._node.tag == f"{_TAG}null" and self._node.value
        quoted = isinstance(self._node, yaml.ScalarNode) and self._node.style in ('"', "'")
        return Written(self._loader, self._node).value(hint) if null or quoted else self.value(hint)

    def _value(self, node: yaml.Node, hint: Any, above: tuple[yaml.Node, ...]) -> Any:
        if node in above:
            raise yaml.constructor.ConstructorError(None, None, "a value that contains itself", node.start_mark)
        above = (*above, node)
        if isinstance(node, yaml.MappingNode):
            inner = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else Any
            return {key: self._value(below, inner, above) for key, below in self._loader.pairs(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self._value(below, (*typing.get_args(hint), Any)[0], above) for below in node.value]
        if hint == list[str] and node.tag == f"{_TAG}str":
            return _listed(node.value)
        if hint is str and (node.tag != f"{_TAG}null" or not node.value):
            return node.value
        return self._loader.construct_object(node, deep=True)


def _listed(text: str) -> list[str]:
    """Texts with commas between them."""
    return [part for part in (part.strip() for part in text.split(",")) if part]


def read(text: str) -> Written | None:
    """A YAML document; None for an empty one. Raises yaml.YAMLError."""
    loader = _Loader(text)
    node = loader.get_single_node()
    return None if node is None else Written(loader, node)


def read_value(text: str) -> Written:
    """A value of the command line, where a text is what was typed. Raises yaml.YAMLError where a type asks YAML."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        return _Unreadable(text, error)
    return Written(loader, node or yaml.ScalarNode(f"{_TAG}str", ""), raw=text)


class _Unreadable(Written):
    """What is a text, or nothing."""

    def __init__(self, text: str, error: yaml.YAMLError) -> None:
        self._text, self._error = text, error

    def entries(self) -> None:
        return None

    def value(self, hint: Any) -> Any:
        if hint is str:
            return self._text
        if hint == list[str] and not self._text.lstrip().startswith("["):  # *.mlp.* is no alias
            return _listed(self._text)
        raise self._error

    entry = value
