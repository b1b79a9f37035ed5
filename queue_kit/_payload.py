"""What lies in a job's `data`: read from the handler's `Job[T]` annotation, checked at enqueue and again at claim.

Plain JSON passes untouched; anything else goes through pydantic, which is imported at the first such registration.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from queue_kit.errors import ConfigurationError, InvalidJob, InvalidPayload
from queue_kit.job import Job


class Payload(Protocol):
    """Turns a handler's data into JSON and back."""

    def encode(self, value: object) -> object:
        """JSON for the database. Raises `InvalidJob` for a value of the wrong type."""

    def decode(self, data: object) -> Any:
        """What the handler receives. Raises `InvalidPayload` for data that does not fit the type any more."""


class JsonPayload:
    """Data that is JSON already; with `dict`, an object."""

    def __init__(self, *, only_objects: bool) -> None:
        self._only_objects = only_objects

    def encode(self, value: object) -> object:
        """`value` itself."""
        self._check(value, InvalidJob)
        return value

    def decode(self, data: object) -> object:
        """`data` itself."""
        self._check(data, InvalidPayload)
        return data

    def _check(self, value: object, error: type[InvalidJob]) -> None:
        if self._only_objects and not isinstance(value, dict):
            raise error("data", f"must be an object (dict), not {type(value).__name__}", path="$")


class TypedPayload:
    """Data of any type that pydantic can read: dataclasses, TypedDicts, models, containers of them."""

    def __init__(self, type_: Any) -> None:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        self._type = type_
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(type_)
        except PydanticUserError as error:
            raise ConfigurationError(f"{_named(type_)} cannot be read from JSON: {error.message}") from error

    def encode(self, value: object) -> object:
        """JSON of `value`, which must read back as the same type."""
        from pydantic import PydanticSchemaGenerationError
        from pydantic_core import PydanticSerializationError, ValidationError, to_json
        from typing_extensions import is_typeddict

        expected = self._type if isinstance(self._type, type) and get_origin(self._type) is None else None
        if is_typeddict(expected):
            expected = dict  # a TypedDict cannot be asked about its instances
        try:
            if expected is not None and not isinstance(value, expected | dict):
                raise InvalidJob("data", f"must be {_named(self._type)}, not {type(value).__name__}", path="$")
            encoded: object = self._adapter.dump_python(
                self._adapter.validate_python(value), mode="json", warnings=False
            )
            self._adapter.validate_json(to_json(encoded, inf_nan_mode="constants"))
        except ValidationError as error:
            raise self._invalid(InvalidJob, error) from None
        except (PydanticSerializationError, PydanticSchemaGenerationError, ValueError, TypeError) as error:
            if isinstance(error, InvalidJob):
                raise
            raise InvalidJob("data", f"is no {_named(self._type)}: {error}", path="$") from None
        return encoded

    def decode(self, data: object) -> Any:
        """`data` as the type."""
        from pydantic_core import ValidationError, to_json

        try:
            return self._adapter.validate_json(to_json(data, inf_nan_mode="constants"))
        except ValidationError as error:
            raise self._invalid(InvalidPayload, error) from None
        except BaseException as error:  # a validator is code of the user
            problem = f"cannot be read as {_named(self._type)}: {type(error).__name__}"
            raise InvalidPayload("data", problem, path="$") from error

    def _invalid(self, kind: type[InvalidJob], error: Any) -> InvalidJob:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        first = problems[0]
        path = "$" + "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return kind("data", f"is no {_named(self._type)}: {first['msg']}{more}", path=path)


def payload_of(function: Callable[..., object]) -> Payload:
    """The payload that a handler's third parameter, `Job[T]`, declares; plain `Job` or nothing means any object."""
    parameter = list(inspect.signature(function).parameters.values())[2]
    annotation = resolved(function, parameter.annotation)
    if annotation not in (inspect.Parameter.empty, Any, object, Job) and get_origin(annotation) is not Job:
        raise ConfigurationError(
            f"the third parameter of {getattr(function, '__qualname__', function)!s} is the job: annotate it as "
            f"Job[...] with the payload's type, not as {_named(annotation)}; the order is (event, session, job)"
        )
    return payload_for(get_args(annotation)[0] if get_origin(annotation) is Job else dict)


def payload_for(type_: Any) -> Payload:
    """The payload of a type: JSON that needs no reading for `dict` and `Any`, else what pydantic makes of it."""
    if type_ is Any:
        return JsonPayload(only_objects=False)
    if type_ is dict or (get_origin(type_) is dict and get_args(type_) == (str, Any)):
        return JsonPayload(only_objects=True)
    return TypedPayload(type_)


def resolved(function: Callable[..., object], annotation: object) -> Any:
    """A parameter's annotation, with the names in it looked up where its function was written."""
    target: Any = inspect.unwrap(function.func if isinstance(function, partial) else function)
    target = target if inspect.isroutine(target) else type(target).__call__
    try:
        names = _seen_by(target) if hasattr(target, "__globals__") else {}
        return get_type_hints(SimpleNamespace(__annotations__={"it": annotation}), names, include_extras=True)["it"]
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise ConfigurationError(
            f"the annotation {annotation!r} of {getattr(function, '__qualname__', repr(function))} cannot be resolved "
            f"({error}): define the payload's type at module level, outside `if TYPE_CHECKING`"
        ) from None


def _seen_by(function: Any) -> dict[str, Any]:
    """The names that code in a function sees, but not those around it that have no value yet."""
    names = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            names[name] = cell.cell_contents
    return names


def _named(type_: Any) -> str:
    return type_.__qualname__ if isinstance(type_, type) else str(type_)
