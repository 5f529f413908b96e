"""Values to Flower's records and back: the one place that knows record keys.

Three wires are spoken. *Plain*: what any single-task app under Flower's own strategies sees; it is passed
on untouched. *Package*: all tasks of a node in one message, with one record of each type, so that mods
which expect exactly one keep working. Arrays, metrics and configuration values have flat keys
``task/name``; a task's name has no slash. Where nothing stands between server and client that looks at them,
the arrays of a task are packed into one, under the key ``task``. What is left of a package travels as JSON
under one key of the ConfigRecord. *Legacy*: either of the two in the records that a `client_fn` app reads
and writes, never packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.typing import ConfigRecordValues

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.round import Mode, RoundReport
from fedmt_flower.errors import FederationError
from fedmt_flower.federation import packing
from fedmt_flower.federation.arrays import spec_of, to_record, to_weights
from fedmt_flower.federation.package import Answer, Hello, Part, Share

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
SERVER_ROUND = "server-round"

_JSON = "fedmt-header"
_NAMES = "fedmt-arrays"
_JSON_LIMIT = 1 << 22
_INS = {"train": "fitins", "evaluate": "evaluateins", "get_properties": "getpropertiesins"}
_RES = {"train": "fitres", "evaluate": "evaluateres", "get_properties": "getpropertiesres"}
_EMPTY = "_empty"
"""What Flower's legacy records call the place of a missing array."""

R = TypeVar("R", bound=MutableMapping[str, Any])
T = TypeVar("T")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    round: int
    modes: dict[str, Mode]
    deadlines: dict[str, float] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    """Tasks whose arrays another node of the site is given."""


# --- Hello ---------------------------------------------------------------------------------------------


def query() -> RecordDict:
    """What a node is asked for its `Hello` with."""
    return RecordDict({CONFIG: ConfigRecord()})


def encode_hello(hello: Hello) -> RecordDict:
    """A node's reply to a query."""
    return RecordDict({CONFIG: ConfigRecord(hello_properties(hello))})


def hello_properties(hello: Hello) -> dict[str, Any]:
    """The same as the properties of a legacy client."""
    return {_JSON: _to_json(hello)}


def decode_hello(content: RecordDict) -> Hello | None:
    """What a node said of itself; None if it knows nothing of packages, FederationError if it babbles."""
    for key in (CONFIG, f"{_RES['get_properties']}.properties"):
        text = _config(content, key).get(_JSON)
        if text is not None:
            return _from_json(text, Hello)
    return None


def legacy_query() -> RecordDict:
    """What makes a `client_fn` app tell its properties."""
    return RecordDict({f"{_INS['get_properties']}.config": ConfigRecord()})


# --- Packages, from the server to a node -----------------------------------------------------------------


def encode_package(round_number: int, parts: Mapping[str, Part]) -> RecordDict:
    """One message's content for all `parts`; it shares their arrays."""
    arrays = _array_entries({task: part.arrays for task, part in parts.items() if part.arrays is not None})
    config = flatten({task: part.config for task, part in parts.items()}, ConfigRecord())
    modes = {task: part.mode for task, part in parts.items()}
    deadlines = {task: part.deadline_s for task, part in parts.items() if part.deadline_s is not None}
    beside = tuple(task for task, part in parts.items() if part.arrays is None)
    config[_JSON] = _to_json(_Header(round=round_number, modes=modes, deadlines=deadlines, beside=beside))
    return RecordDict({ARRAYS: arrays, CONFIG: config})


def decode_package(content: RecordDict) -> tuple[int, dict[str, Share]] | None:
    """The round and the parts of a package; None if `content` is none, FederationError if it is broken."""
    config = _config(content, CONFIG)
    if _JSON not in config:
        return None
    arrays: dict[str, Weights] = _task_arrays("package", content, packing.packed_in, to_weights)
    return _shares(arrays, config)


def decode_legacy_package(
    parameters: list[Any], config: Mapping[str, Any]
) -> tuple[int, dict[str, Share]] | None:
    """`decode_package` for the arguments of a NumPyClient's `fit` and `evaluate`."""
    if _JSON not in config:
        return None
    names = _from_json(config.get(_NAMES), list[str])
    if len(names) != len(parameters):
        raise FederationError(f"package: {len(parameters)} arrays for {len(names)} names")
    return _shares(split(dict(zip(names, parameters, strict=True))), config)


def _shares(arrays: Mapping[str, Weights], config: Mapping[str, Any]) -> tuple[int, dict[str, Share]]:
    header = _from_json(config[_JSON], _Header)
    configs = split(config)
    shares = {
        task: Share(
            mode=mode,
            weights=None if task in header.beside else arrays.get(task, {}),
            config=configs.get(task, {}),
            deadline_s=header.deadlines.get(task),
        )
        for task, mode in header.modes.items()
    }
    return header.round, shares


# --- Answers, from a node to the server ------------------------------------------------------------------


def encode_answer(report: RoundReport, weights: Mapping[str, Weights], *, packed: bool = False) -> RecordDict:
    """A node's reply to a package, its arrays packed by task if they came so."""
    arrays = _array_entries(
        {
            task: packing.cut(packing.pack(state)) if packed and packing.can_pack(state) else to_record(state)
            for task, state in weights.items()
        }
    )
    metrics = flatten(_train_metrics(report, weights), MetricRecord())
    config = ConfigRecord({_JSON: _to_json(report)})
    return RecordDict({ARRAYS: arrays, METRICS: metrics, CONFIG: config})


def encode_legacy_answer(
    report: RoundReport, weights: Mapping[str, Weights]
) -> tuple[list[Any], dict[str, Any]]:
    """`encode_answer` for what a NumPyClient's `fit` returns: the arrays and the metrics."""
    named = {f"{task}/{name}": array for task, state in weights.items() for name, array in state.items()}
    metrics: dict[str, Any] = {_JSON: _to_json(report), _NAMES: _to_json(list(named))}
    return list(named.values()), flatten(_train_metrics(report, weights), metrics)


def decode_answer(content: RecordDict) -> Answer:
    """A node's reply to a package; FederationError if it is none."""
    report = decode_report(content)
    if report is None:
        raise FederationError("reply: no report in it, expected that of a fedmt_flower client")
    arrays = _task_arrays("reply", content, packing.unpack, _as_record)
    record = content.get(METRICS)
    values = split(record) if isinstance(record, MetricRecord) else {}
    metrics = {task: fill(MetricRecord(), entries) for task, entries in values.items()}
    return Answer(report=report, arrays=arrays, metrics=metrics)


def is_packed(content: RecordDict) -> bool:
    """Whether any task's arrays are packed in `content`."""
    return any(array.stype == packing.STYPE for array in _array_record(content).values())


def decode_report(content: RecordDict) -> RoundReport | None:
    """The report that came with a reply, of whatever wire; None if there is none."""
    text = _config(content, CONFIG).get(_JSON)
    return None if text is None else _from_json(text, RoundReport)


def _train_metrics(report: RoundReport, weights: Mapping[str, Weights]) -> dict[str, dict[str, float]]:
    return {
        task: {NUM_EXAMPLES: report.task(task).train_examples, **report.task(task).train_metrics}
        for task in weights
    }


def evaluation_record(report: RoundReport, task: str) -> MetricRecord:
    """The evaluation of `task` as a strategy expects it; empty if nothing was evaluated."""
    own = report.task(task)
    if not own.evaluate_metrics:
        return MetricRecord()
    return MetricRecord({NUM_EXAMPLES: own.evaluate_examples, **own.evaluate_metrics})


# --- The plain wire, as a client of one task sees it -----------------------------------------------------


def decode_plain(content: RecordDict) -> tuple[Weights, Mapping[str, ConfigRecordValues]]:
    """Weights and configuration of a message of Flower's own strategies."""
    config: Mapping[str, ConfigRecordValues] = {}
    for record in content.values():
        if isinstance(record, ConfigRecord):
            config = record
            break
    try:
        return to_weights(_array_record(content)), config
    except ValueError as error:
        raise FederationError(f"message: array {error}") from error


def encode_plain(report: RoundReport, task: str, weights: Weights | None, like: RecordDict) -> RecordDict:
    """The reply to such a message: an update, under the key `like` has, if there are `weights`."""
    config = ConfigRecord({_JSON: _to_json(report)})
    if weights is None:
        return RecordDict({METRICS: evaluation_record(report, task), CONFIG: config})
    metrics = MetricRecord(dict(_train_metrics(report, {task: weights})[task]))
    key = next(iter(like.array_records), ARRAYS)
    return RecordDict({key: to_record(weights), METRICS: metrics, CONFIG: config})


# --- The legacy wire, seen from the server ----------------------------------------------------------------


def to_legacy(content: RecordDict, message_type: str) -> RecordDict:
    """`content`, of either other wire, as a `client_fn` app reads it; it shares the arrays' bytes."""
    kind = message_type.partition(".")[0]
    record = _array_record(content)
    arrays = ArrayRecord()
    for position, array in enumerate(record.values()):
        arrays[str(position)] = Array(dtype="", shape=(), stype=array.stype, data=array.data)
    config = ConfigRecord()
    for candidate in content.values():
        if isinstance(candidate, ConfigRecord):
            config = fill(ConfigRecord(), candidate)
            break
    if _JSON in config:
        config[_NAMES] = _to_json(list(record))
    return RecordDict({f"{_INS[kind]}.parameters": arrays, f"{_INS[kind]}.config": config})


def from_legacy(content: RecordDict, message_type: str, names: list[str]) -> RecordDict:
    """A `client_fn` app's reply as its Message-API counterpart would have written it.

    `names` are given to the arrays by position, unless the reply itself names them.

    Raises
    ------
    FederationError
        If the client says that it failed, or gave another number of arrays.
    """
    result = _RES[message_type.partition(".")[0]]
    status = _config(content, f"{result}.status")
    if status.get("code", 0) != 0:
        raise FederationError(f"client_fn app: {status.get('message', 'no reason given')}")
    values = _config(content, f"{result}.metrics")
    metrics, config = MetricRecord(), ConfigRecord()
    for key in ("num_examples", "loss"):
        record = content.get(f"{result}.{key}")
        if isinstance(record, MetricRecord) and key in record:
            metrics[NUM_EXAMPLES if key == "num_examples" else key] = record[key]
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            metrics[key] = value
    if _JSON in values:
        config[_JSON] = values[_JSON]
    converted = RecordDict({METRICS: metrics, CONFIG: config})
    positional = content.get(f"{result}.parameters")
    if isinstance(positional, ArrayRecord):
        named = _from_json(values[_NAMES], list[str]) if _NAMES in values else names
        converted[ARRAYS] = _name(positional, named)
    return converted


def _name(positional: ArrayRecord, names: list[str]) -> ArrayRecord:
    arrays = [array for key, array in positional.items() if key != _EMPTY]
    if len(arrays) != len(names):
        raise FederationError(f"reply: expected {len(names)} arrays, got {len(arrays)}")
    record = ArrayRecord()
    for name, array in zip(names, arrays, strict=True):
        try:
            spec = spec_of({name: array})[name]
        except ValueError as error:
            raise FederationError(f"reply: array {error}") from error
        record[name] = Array(dtype=str(spec.dtype), shape=spec.shape, stype=array.stype, data=array.data)
    return record


# --- Keys and JSON ------------------------------------------------------------------------------------------


def _array_entries(tasks: Mapping[str, ArrayRecord | Array | Sequence[Array]]) -> ArrayRecord:
    """One record of the arrays of all `tasks`.

    They are under ``task/name``, packed ones under ``task``, the further pieces of those under ``task/n``.
    """
    record = ArrayRecord()
    for task, one in tasks.items():
        if isinstance(one, ArrayRecord):
            flatten({task: one}, record)
            continue
        first, *others = [one] if isinstance(one, Array) else one
        fill(record, {task: first, **{f"{task}/{n}": piece for n, piece in enumerate(others, start=1)}})
    return record


def _task_arrays(
    what: str,
    content: RecordDict,
    read_packed: Callable[..., T],
    read_single: Callable[[Mapping[str, Array]], T],
) -> dict[str, T]:
    """The inverse of `_array_entries`; FederationError, of `what`, if a task's arrays cannot be read."""
    packed: dict[str, list[Array]] = {}
    single: dict[str, Array] = {}
    for key, array in _array_record(content).items():
        if array.stype == packing.STYPE:
            packed.setdefault(key.partition("/")[0], []).append(array)
        else:
            single[key] = array
    tasks: dict[str, T] = {}
    for task, entries in split(single).items():
        try:
            tasks[task] = read_single(entries)
        except ValueError as error:
            raise FederationError(f"{what}: task {task!r}, array {error}") from error
    for task, pieces in packed.items():
        if task in tasks:
            raise FederationError(f"{what}: task {task!r} is there both packed and array by array")
        try:
            tasks[task] = read_packed(*pieces)
        except ValueError as error:
            raise FederationError(f"{what}: packed task {task!r}: {error}") from error
    return tasks


def _as_record(entries: Mapping[str, Array]) -> ArrayRecord:
    return fill(ArrayRecord(), entries)


def flatten(tasks: Mapping[str, Mapping[str, Any]], record: R) -> R:
    """`record`, with the entries of all `tasks` added under keys ``task/name``."""
    for task, entries in tasks.items():
        fill(record, {f"{task}/{name}": value for name, value in entries.items()})
    return record


def split(entries: Mapping[str, V]) -> dict[str, dict[str, V]]:
    """The inverse of `flatten`; keys without a slash are left out."""
    tasks: dict[str, dict[str, V]] = {}
    for key, value in entries.items():
        task, slash, name = key.partition("/")
        if slash:
            tasks.setdefault(task, {})[name] = value
    return tasks


def fill(record: R, entries: Mapping[str, Any]) -> R:
    """`record`, with `entries` added; arrays are shared, where Flower's own constructor copies them."""
    for key, value in entries.items():
        record[key] = value
    return record


def _config(content: RecordDict, key: str) -> Mapping[str, Any]:
    record = content.get(key)
    return record if isinstance(record, ConfigRecord) else {}


def _array_record(content: RecordDict) -> ArrayRecord:
    found = [record for record in content.values() if isinstance(record, ArrayRecord)]
    if len(found) > 1:
        raise FederationError(f"message: {len(found)} ArrayRecords, expected one")
    return found[0] if found else ArrayRecord()


def _to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _from_json(text: Any, kind: type[T]) -> T:
    if not isinstance(text, str) or len(text) > _JSON_LIMIT:
        raise FederationError(f"header of a message: expected at most {_JSON_LIMIT} characters of JSON")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FederationError(f"header of a message: {error}") from error
