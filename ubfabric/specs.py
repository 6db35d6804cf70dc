"""Loading of YAML specifications: safe, strict, and with errors of one line.

A name such as ``cloudmatrix384`` resolves to the file shipped with the package; a
path with a ``.yaml`` ending is read as it stands.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ubfabric.errors import SpecError

#: Networks a plane belongs to and a flow names; the engine knows them by this order.
NETWORKS = ("ub", "rdma", "vpc")


class Spec(BaseModel):
    """Base of all specifications: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SpecT = TypeVar("SpecT", bound=BaseModel)


def shipped(folder: str) -> dict[str, Any]:
    """Return the specifications shipped in ``folder`` (``topologies`` or ``traffic``).

    Returns
    -------
    dict of str to importlib.resources.abc.Traversable
        Name without ending to file, sorted by name.
    """
    root = resources.files("ubfabric").joinpath(folder)
    if not root.is_dir():  # an editable checkout keeps them at the top level
        root = resources.files("ubfabric").joinpath("..", folder)
    files = [item for item in root.iterdir() if item.name.endswith(".yaml")]
    return {item.name.removesuffix(".yaml"): item for item in sorted(files, key=lambda f: f.name)}


def load_yaml(name_or_path: str | Path, folder: str) -> tuple[str, dict[str, Any]]:
    """Return the label and the raw content of a specification.

    Parameters
    ----------
    name_or_path : str or Path
        A shipped name, or the path of a YAML file.
    folder : {'topologies', 'traffic'}
        Where shipped names are looked up.

    Raises
    ------
    SpecError
        If the file is missing, is not YAML, or is not a mapping.
    """
    text_name = str(name_or_path)
    if text_name.endswith((".yaml", ".yml")):
        file: Any = Path(text_name)
        if not file.is_file():
            raise SpecError(f"{text_name}: no such file")
        label = text_name
    else:
        known = shipped(folder)
        if text_name not in known:
            raise SpecError(
                f"{text_name!r} is neither a .yaml file nor a shipped name; "
                f"shipped in {folder}: {', '.join(known)}"
            )
        file, label = known[text_name], f"{folder}/{text_name}.yaml"
    try:
        raw = copy.deepcopy(_parsed(file.read_text(encoding="utf-8")))
    except (YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{label}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{label}: found {type(raw).__name__}, expected a mapping of keys")
    return label, raw


@functools.lru_cache(maxsize=32)
def _parsed(text: str) -> Any:
    """Return the content of a YAML text; kept, since all points of a sweep begin with the same."""
    return YAML(typ="safe", pure=True).load(text)


def validate_spec(model: type[SpecT], raw: dict[str, Any], label: str) -> SpecT:
    """Return ``raw`` as a checked ``model``.

    Raises
    ------
    SpecError
        One line with file, key, what was found and what is allowed.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            allowed = _allowed_keys(model, first["loc"][:-1])
            message = f"unknown key; allowed here: {', '.join(allowed)}"
        elif first["type"] == "missing":
            message = "required key is missing"
        elif first["type"] == "model_type":
            allowed = _allowed_keys(model, first["loc"])
            message = f"found {first['input']!r}; expected the keys {', '.join(allowed)}"
        elif "found" not in message:
            message = f"found {first['input']!r}; {message[0].lower()}{message[1:]}"
        raise SpecError(f"{label}: {key}: {message}") from None


def parse_policy(raw: Any, policies: Mapping[str, type[SpecT]]) -> SpecT:
    """Return the policy that a mapping with the key ``policy`` describes.

    Parameters
    ----------
    raw : Any
        The mapping as it stands in YAML.
    policies : mapping of str to type
        Policies by name.

    Raises
    ------
    ValueError
        If the policy or one of its parameters is unknown or out of range.
    """
    names = ", ".join(sorted(policies))
    if not isinstance(raw, dict) or "policy" not in raw:
        raise ValueError(f"found {raw!r}, allowed a mapping with 'policy': one of {names}")
    cls = policies.get(raw["policy"]) if isinstance(raw["policy"], str) else None
    if cls is None:
        raise ValueError(f"policy: found {raw['policy']!r}, allowed: {names}")
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(cls.model_fields))
            raise ValueError(
                f"{key}: found with policy {raw['policy']!r}, which allows: {allowed}; to replace "
                "another policy, give the whole mapping"
            ) from None
        if first["type"] == "missing":
            raise ValueError(f"{key}: found nothing, the key is required") from None
        if "found" in message:
            raise ValueError(f"{key}: {message}" if key else message) from None
        raise ValueError(f"{key}: found {first['input']!r}; {message}") from None


def override(raw: dict[str, Any], key: str, value: Any, label: str) -> None:
    """Set a dotted key of a specification; that the key exists is left to validation.

    Parameters
    ----------
    raw : dict
        The specification, changed in place.
    key : str
        Such as ``serving.batch_per_npu``.
    value : Any
        The value; a copy is kept.
    label : str
        How an error begins.

    Raises
    ------
    SpecError
        If a part of the key but the last is not a mapping.
    """
    *path, last = key.split(".")
    place = raw
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise SpecError(f"{label}: override {key!r}: {part!r} is not a mapping of keys")
    place[last] = copy.deepcopy(value)


def _allowed_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys allowed at ``loc``, for the error message."""
    inside = model
    for part in loc:
        field = inside.model_fields.get(str(part))
        if field is not None:
            inside = _model_of(field.annotation) or inside
    return sorted(field.alias or name for name, field in inside.model_fields.items())


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model named in a field type such as ``Model | None`` or ``list[Model]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_of(part))), None)
