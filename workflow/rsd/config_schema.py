"""The configuration's schema: merging, inheriting, filling defaults, and explaining what breaks it.

workflow/schemas/config.schema.yaml is the only place of every default. Dicts in, dicts or sentences out; what names
stand for is not looked at (`config_checks`).
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Config = dict[str, Any]

SCHEMA_PATH = Path(__file__).parents[1] / "schemas" / "config.schema.yaml"
# Catalogues whose entries may be `like` another of theirs.
INHERITING = ("models", "traces")


@functools.cache
def load_schema() -> dict[str, Any]:
    """The JSON schema of the configuration, the only place of every default; read once, and not to be changed."""
    return yaml.safe_load(SCHEMA_PATH.read_text(encoding="utf-8"))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Config:
    """`over` laid over `base`: mappings key by key, everything else (lists too) replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def inherit(config: Config) -> list[str]:
    """Lays every entry that is `like` another over that one, in place; returns what is wrong with the names."""
    problems: list[str] = []
    for catalogue in INHERITING:
        if isinstance(entries := config.get(catalogue), dict):
            config[catalogue] = {name: _written_out(catalogue, name, entries, problems) for name in entries}
    return problems


def _written_out(catalogue: str, name: str, entries: Mapping[str, Any], problems: list[str]) -> Any:
    """An entry with the settings of the one that it is like, of the one that this is like, and so on.

    Where a name is wrong, or no name, the entry stays as it is.
    """
    chain = [name]
    while isinstance(entry := entries[chain[-1]], dict) and "like" in entry:
        other = entry["like"]
        if not isinstance(other, str):
            return entries[name]  # the schema tells
        if other not in entries or other in chain:
            if other not in entries and chain == [name]:
                key = f"{catalogue}.{name}.like = {other!r}"
                problems.append(f"{key}: no such entry in {catalogue}; {suggest(other, entries)}")
            elif other == name:
                circle = " -> ".join([*chain, name])
                problems.append(f"{catalogue}.{name}.like: goes round in a circle ({circle}); write one of them out")
            return entries[name]
        chain.append(other)
    if not isinstance(entry, dict):
        return entries[name]
    merged: Config = {}
    for link in reversed(chain):
        merged = merge(merged, {key: value for key, value in entries[link].items() if key != "like"})
    return merged


def fill_defaults(schema: Mapping[str, Any], value: Any, node: Mapping[str, Any] | None = None) -> Any:
    """`value` with the schema's defaults filled, at any depth; `node` is the part of `schema` that describes it."""
    node = _resolve(schema, schema if node is None else node)
    if not isinstance(value, dict):
        return value
    filled = {}
    for key, child in node.get("properties", {}).items():
        if key in value:
            filled[key] = fill_defaults(schema, value[key], child)
        elif (default := _default(schema, child)) is not _NO_DEFAULT:
            filled[key] = fill_defaults(schema, copy.deepcopy(default), child)
    others = node.get("additionalProperties")
    for key in [key for key in value if key not in filled]:
        filled[key] = fill_defaults(schema, value[key], others) if isinstance(others, dict) else value[key]
    return filled


_NO_DEFAULT = object()


def _resolve(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    """`node` with its $ref followed; keys beside the $ref stay on top."""
    if "$ref" not in node:
        return node
    target = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return {**_resolve(schema, target), **{key: value for key, value in node.items() if key != "$ref"}}


def _default(schema: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    node = _resolve(schema, node)
    if "default" in node:
        return node["default"]
    # An object all of whose keys have defaults has one itself.
    if node.get("type") == "object" and node.get("properties") and not node.get("required"):
        return {}
    return _NO_DEFAULT


def not_finite(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(key, value) of every nan and infinity at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        yield key, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in items:
        yield from not_finite(child, f"{key}.{name}".lstrip("."))


def _pattern(validator: Any, pattern: str, value: Any, node: Any) -> Iterator[jsonschema.ValidationError]:
    """JSON Schema's `$` is the very end; Python's also stands before a line break there, which a name must not hold."""
    if validator.is_type(value, "string") and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})


def schema_problems(schema: Mapping[str, Any], config: Config) -> list[str]:
    """What the schema finds wrong, one line a mistake, in the order of the keys."""
    validator = VALIDATOR(schema)
    errors = sorted(
        validator.iter_errors(config), key=lambda error: (list(map(str, error.absolute_path)), error.message)
    )
    return [line for error in errors for line in explain(error)]


def explain(error: jsonschema.ValidationError) -> list[str]:
    """One line a mistake: the key, its value, what was expected, what to do."""
    path = [str(part) for part in error.absolute_path]
    key = ".".join(path) or "(top level)"
    # Typed as anything by jsonschema, since a schema may be a bare true or false; ours never is.
    node: Any = error.schema
    found: Any = error.instance
    wanted: Any = error.validator_value
    description = node.get("description", "")
    hint = f" ({' '.join(description.split())})" if description else ""
    match error.validator:
        case "additionalProperties":
            known = list(node.get("properties", {}))
            unknown = [name for name in found if name not in known]
            return [
                f"{'.'.join([*path, str(name)])} = {found[name]!r}: unknown key; {suggest(str(name), known)}"
                for name in unknown
            ]
        case "required":
            missing = [name for name in wanted if name not in found]
            return [f"{'.'.join([*path, name])}: missing; add it{hint}" for name in missing]
        case "type":
            kinds = wanted if isinstance(wanted, list) else [wanted]
            number = isinstance(found, str) and bool({"number", "integer"} & set(kinds))
            remedy = "write the number without quotes, in a config file" if number else "correct it"
            kind = type(found).__name__
            return [f"{key} = {found!r}: expected {' or '.join(kinds)}, found {kind}; {remedy}{hint}"]
        case "enum":
            allowed = [str(value) for value in wanted]
            return [f"{key} = {found!r}: {suggest(str(found), allowed)}{hint}"]
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return [f"{key} = {found!r}: expected {_bounds(node)}; choose a value in it{hint}"]
        case "pattern" if node.get("writeOnly"):
            # Perhaps a secret that got into the wrong place.
            return [f"{key}: not of the form {wanted}; correct it{hint}"]
        case _:
            return [f"{key} = {found!r}: {error.message}; correct it{hint}"]


def _bounds(node: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return "a value " + " and ".join(f"{sign} {node[name]}" for name, sign in signs.items() if name in node)


def suggest(name: str, known: Iterable[str]) -> str:
    """What was expected in place of `name`, and which of it was perhaps meant."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    start = f"did you mean {close[0]!r}? " if close else ""
    return f"{start}expected one of: {', '.join(known) or '(none defined)'}"
