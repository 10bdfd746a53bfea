"""YAML as DVC reads and writes it: version 1.2. PyYAML speaks 1.1, to which `3e-05`, DVC's spelling, is text.

|            | YAML 1.1 | here, and to DVC |
|------------|----------|------------------|
| 3e-05, 1e5 | text     | numbers          |
| yes, off   | true, false | text          |
| 010, 0o17  | 8, text  | 10, 15           |
| 1:30       | 90       | text             |
"""

import re
from typing import Any

import yaml

from dlm.errors import UserError

_BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float"))
_SPELLINGS = {
    _BOOL: (re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    _INT: (
        re.compile("^[-+]?(?:[0-9][0-9_]*|0b[01][01_]*|0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*)$"),
        "-+0123456789",
    ),
    _FLOAT: (
        re.compile(
            r"""^(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
                |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
                |[-+]?\.(?:inf|Inf|INF)
                |\.(?:nan|NaN|NAN))$""",
            re.X,
        ),
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    """A second key of the same name is an error; SafeLoader keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} stands twice in one block; keep one", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 0 if text.lstrip("-+")[1:2].isalpha() else 10)


class _Dumper(yaml.SafeDumper):
    """Text that looks like something else to YAML 1.1 or 1.2 is put in quotes."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, spelling) for tag, spelling in known if tag not in _SPELLINGS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(_INT, _Loader.construct_whole)
for _tag, (_spelling, _first) in _SPELLINGS.items():
    _Loader.add_implicit_resolver(_tag, _spelling, list(_first))
    _Dumper.add_implicit_resolver(_tag, _spelling, list(_first))


def load_yaml(text: str) -> Any:
    """Plain values. Raises ValueError for what is not YAML, and for a key that stands twice in one block."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, LookupError, AttributeError, RecursionError) as error:  # `!!bool 3`, `!!timestamp x`, [[[[
        raise ValueError(" ".join(str(error).split())) from None


def value_of(text: str, where: str) -> Any:
    """A value on the command line, as params.yaml would read it. Raises UserError, which begins with `where`."""
    try:
        return load_yaml(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is not a value") from None


def setting(text: str, where: str) -> tuple[str, Any]:
    """KEY=VALUE on the command line. Raises UserError, which begins with `where`."""
    key, equals, value = text.partition("=")
    if not key or not equals or not value.strip():
        raise UserError(f"{where} wants KEY=VALUE (null for nothing), got {text!r}")
    return key, value_of(value, f"{where} {key}")


def split_variant(text: str, where: str) -> tuple[str, dict[str, Any]]:
    """A name with settings: 'conv:suffix=none,kernel_size=65' -> ('conv', {'suffix': 'none', 'kernel_size': 65})."""
    name, _, rest = text.partition(":")
    return name, dict(setting(item, where) for item in filter(None, rest.split(",")))


def dump_yaml(value: Any, sort_keys: bool = False) -> str:
    """Plain values as YAML that 1.1 reads alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys)


def is_number(text: str) -> bool:
    """Whether it would be one without quotes."""
    return any(_SPELLINGS[tag][0].match(text) for tag in (_INT, _FLOAT))


def spelled(number: str) -> str:
    """A plain number of YAML 1.2 as 1.1 reads it, too: `3e-05` -> `3.0e-05`; as it is where both read the same."""
    value = load_yaml(number)
    return number if value == yaml.safe_load(number) else yaml.representer.SafeRepresenter().represent_data(value).value


def is_text(plain: str) -> bool:
    """Whether it stays text without quotes in YAML 1.1."""
    return yaml.resolver.Resolver().resolve(yaml.ScalarNode, plain, (True, False)) == "tag:yaml.org,2002:str"
