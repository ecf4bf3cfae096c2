"""Configurations: one validated, frozen class gives the Python call, the YAML file and the flags."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from patterning.core.errors import PatterningError


class Frozen(BaseModel):
    """A part of a configuration: it never changes, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Frozen):
    """A whole configuration: doubtful results are used all the same under `force`, which may change between calls."""

    preset: str
    force: bool = False


C = TypeVar("C", bound=Settings)


def validate(kind: type[C], values: dict[str, Any], origin: str) -> C:
    """A validated configuration; raises `PatterningError` that names the first wrong field of `origin`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise PatterningError(f"{origin}: {place}: {first['msg'].lower()}") from None


class _EachOnce(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping, of which YAML would keep the last value without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the safe loader does."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The values in a YAML file; raises `PatterningError` when there is none."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _EachOnce)  # a safe loader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PatterningError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise PatterningError(f"{path} holds no configuration")
    return values
