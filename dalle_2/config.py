"""Settings: frozen pydantic models that refuse unknown keys; read from mappings, dotted keys and TOML files.

Example::

    class DecoderSettings(Settings):
        steps: int = Field(50, ge=1)

    parse(DecoderSettings, {"step": 3})            # ConfigError: unknown key 'step'; did you mean 'steps'?
    override(RunSettings(), {"decoder.steps": "20"})
"""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dalle_2.errors import ConfigError
from dalle_2.plain_text import decoded

MOST_TOLD = 8  # problems in one message: a file can have a million


class Settings(BaseModel):
    """The base of every settings class: immutable, strict about names, finite numbers only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, **values: Any) -> None:
        """Raises ConfigError as `parse` does."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(describe(error, type(self))) from None

    # As pydantic marks its own: sections inside a section are read without it, and keep their place in the message.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


S = TypeVar("S", bound=Settings)


def parse(cls: type[S], values: Mapping[str, Any], *, where: str = "") -> S:
    """Builds `cls` from plain values. `where` names their source ("run.toml") in the message.

    Raises ConfigError with the full path of each wrong key and the nearest real one.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(describe(error, cls, where=where)) from None


def override(settings: S, changes: Mapping[str, Any]) -> S:
    """A copy with some values replaced: {"decoder.steps": 20, "levels.0.width": "64"}.

    Strings are read as TOML scalars where that fits the setting, and taken as they are otherwise; "none"
    stands for None. Raises ConfigError for an unknown key or a value that doesn't fit.
    """
    cls = type(settings)
    values = settings.model_dump()
    for key, value in changes.items():
        path = key.split(".")
        _put(values, path, _fitting(cls, path, value), cls=cls)
    return parse(cls, values)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ConfigError if it is missing or not TOML."""
    try:
        return tomllib.loads(decoded(Path(os.path.expanduser(path)).read_bytes()))
    except ValueError as error:  # of TOML, of text, of a number of thousands of digits
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not a TOML file of settings: it is nested too deeply") from None
    except OSError as error:
        raise ConfigError(f"can't read the settings file {path}: {error.strerror}") from None


def describe(error: ValidationError, cls: type[BaseModel] | None = None, *, where: str = "") -> str:
    """pydantic's report as one sentence; with `cls`, unknown keys come with the nearest real one."""
    details = error.errors(include_url=False)
    told = [_short(_problem(detail, cls)) for detail in details[:MOST_TOLD]]
    rest = [f"and {len(details) - MOST_TOLD} more"] if len(details) > MOST_TOLD else []
    problems = "; ".join([*told, *rest])
    return f"{where}: {problems}" if where else problems


def _written(value: Any) -> str:
    try:
        return repr(value)
    except (RecursionError, ValueError):  # lists in lists without end, numbers of thousands of digits
        return f"a {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:397]}..."


def _problem(detail: ErrorDetails, cls: type[BaseModel] | None) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, _known_keys(cls, detail["loc"][:-1]))
    if detail["type"] == "missing":
        return f"{path!r} is missing"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not path:
        return message
    if detail["type"] == "value_error" and isinstance(detail["input"], Mapping | BaseModel):
        return f"{path!r}: {message}"  # a rule of a whole section, which says itself what it got
    value = _written(detail["input"])
    return f"{path!r} {message}, got {value if len(value) <= 80 else value[:77] + '...'}"


def _unknown_key(path: str, known: Sequence[str]) -> str:
    close = get_close_matches(path.rpartition(".")[2][:100], known, n=1)
    if close:
        return f"unknown key {path!r}; did you mean {close[0]!r}?"
    return f"unknown key {path!r}; known are {', '.join(known)}" if known else f"unknown key {path!r}"


def _known_keys(cls: Any, path: Sequence[str | int]) -> list[str]:
    return [name for model in _models(_annotation(cls, path)) for name in model.model_fields]


def _annotation(annotation: Any, path: Sequence[str | int]) -> Any:
    """The type found by walking `path` down from `annotation`; None where it leads nowhere."""
    for part in path:
        fields = {name: field for model in _models(annotation) for name, field in model.model_fields.items()}
        if part in fields:
            # With its constraints (ge=1, ...), which pydantic keeps apart from the bare type.
            annotation = fields[str(part)].rebuild_annotation()
        elif not str(part).isdigit() and not any(part == model.__name__ for model in _models(annotation)):
            return None
    return annotation


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every settings class named in a type: `Level | None`, `tuple[Level, ...]`, `dict[str, Level]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _fitting(cls: type[Settings], path: Sequence[str], value: Any) -> Any:
    """The first reading of a string that the setting accepts: TOML, then the string itself, then None."""
    if not isinstance(value, str):
        return value
    readings = [*_toml_scalar(value), value, *([None] if value.lower() in ("none", "null") else [])]
    annotation = _annotation(cls, path)
    return next((reading for reading in readings if _accepts(annotation, reading)), readings[0])


def _toml_scalar(text: str) -> list[Any]:
    try:
        values = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return []
    return [values["value"]] if len(values) == 1 else []


def _accepts(annotation: Any, value: Any) -> bool:
    if annotation is None:
        return False
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return False
    return True


def _put(values: Any, path: list[str], value: Any, *, cls: type[Settings]) -> None:
    """Sets `value` at `path` in nested dicts and sequences, turning tuples on the way into lists."""
    for depth in range(len(path) - 1):
        key = _index(values, path, depth, cls, new=path[depth] in _known_keys(cls, path[:depth]))
        if isinstance(values, dict):
            values.setdefault(key, {})  # a part of a section that was off until now
        if isinstance(values[key], tuple):
            values[key] = list(values[key])
        if not isinstance(values[key], dict | list):
            # An optional section that is still off: setting one of its keys switches it on.
            values[key] = {}
        values = values[key]
    values[_index(values, path, len(path) - 1, cls, new=True)] = value


def _index(values: Any, path: list[str], depth: int, cls: type[Settings], *, new: bool = False) -> str | int:
    part = path[depth]
    if isinstance(values, list) and part.isdigit() and int(part) < len(values):
        return int(part)
    if isinstance(values, dict) and (new or part in values):
        return part
    raise ConfigError(_unknown_key(".".join(path[: depth + 1]), _known_keys(cls, path[:depth])))
