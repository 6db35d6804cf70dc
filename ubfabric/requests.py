"""Requests: when each arrives, how long its prompt and its answer are, what of it is cached.

An *arrival policy* makes the requests of a run: drawn (:class:`PoissonArrivals`,
:class:`BurstArrivals`) with lengths of a *length policy*, or read from a file
(:class:`FileArrivals`). Files are recognised by their columns:

======== ================================================================ =====================
format   columns                                                          endings
======== ================================================================ =====================
ubfabric ``time``, ``prompt_tokens``, ``output_tokens``, and perhaps      csv, jsonl, parquet
         ``reused_tokens`` or ``prefix_hashes``
azure    ``TIMESTAMP``, ``ContextTokens``, ``GeneratedTokens``            csv, jsonl, parquet
mooncake ``timestamp`` (ms), ``input_length``, ``output_length``,         csv, jsonl, parquet
         ``hash_ids``
======== ================================================================ =====================

Azure is the format of the LLM inference traces that Microsoft Azure published (Patel et al.,
"Splitwise", ISCA 2024; Stojkovic et al., "DynamoLLM", HPCA 2025), Mooncake that of the traces
published with "Mooncake" (Qin et al., FAST 2025), in which an id stands for a block of 512
tokens together with all before it.

To add a policy or a format, derive from :class:`ArrivalPolicy`, :class:`LengthPolicy` or
:class:`RequestFormat` and decorate or list it as the ones here.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from ubfabric.errors import TraceError
from ubfabric.operators import PositiveCount
from ubfabric.quantities import Fraction, Picoseconds, parse_time_ps
from ubfabric.specs import Spec, parse_policy

PS_PER_S = 10**12
#: Most tokens of a prompt or an answer.
MOST_TOKENS = 1 << 24
#: Most requests of a run: their arrays take about 150 B each.
MOST_REQUESTS = 50_000_000
#: Tokens that an id of a Mooncake trace stands for ("Mooncake", FAST 2025, section on the trace).
MOONCAKE_BLOCK_TOKENS = 512
# What a random generator is for; part of its seed.
_FOR_TIMES, _FOR_PROMPTS, _FOR_OUTPUTS = 11, 12, 13


@dataclass(frozen=True)
class Requests:
    """Requests in the order in which they arrive.

    Attributes
    ----------
    arrival_ps : ndarray of int64, shape (n_requests,), picoseconds
        Not descending, from the start of the run.
    prompt_tokens, output_tokens : ndarray of int64, shape (n_requests,)
        At least 1 each; the first output token is the one that prefill gives.
    reused_tokens : ndarray of int64, shape (n_requests,)
        Leading tokens of the prompt that the context cache is said to hold; 0 where blocks say it.
    block_ids : ndarray of int64, shape (n_blocks,)
        Ids of all prompts' blocks, one prompt after another. Equal ids are the same block after
        the same blocks.
    first_block : ndarray of int64, shape (n_requests + 1,)
        Blocks ``first_block[i]`` to ``first_block[i + 1]`` are those of request ``i``; none where
        nothing is known.
    block_tokens : int
        Tokens of a block that ids stand for; 0 if there are no ids.
    label : str
        Where they come from, for messages to people.
    """

    arrival_ps: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    reused_tokens: np.ndarray
    block_ids: np.ndarray
    first_block: np.ndarray
    block_tokens: int
    label: str

    def __len__(self) -> int:
        return len(self.arrival_ps)

    def blocks(self, request: int) -> list[int]:
        """Return the ids of the blocks of a request's prompt, the first first."""
        ids: list[int] = self.block_ids[
            self.first_block[request] : self.first_block[request + 1]
        ].tolist()
        return ids

    def until(self, duration_ps: int) -> Requests:
        """Return the requests that arrive before a time."""
        n = int(np.searchsorted(self.arrival_ps, duration_ps, side="left"))
        return Requests(
            self.arrival_ps[:n],
            self.prompt_tokens[:n],
            self.output_tokens[:n],
            self.reused_tokens[:n],
            self.block_ids[: self.first_block[n]],
            self.first_block[: n + 1],
            self.block_tokens,
            self.label,
        )


def make_requests(
    arrival_ps: np.ndarray,
    prompt_tokens: np.ndarray,
    output_tokens: np.ndarray,
    *,
    reused_tokens: np.ndarray | None = None,
    blocks: Iterable[Iterable[Any]] | None = None,
    block_tokens: int = 0,
    label: str = "requests",
) -> Requests:
    """Return requests from columns, checked.

    Parameters
    ----------
    arrival_ps, prompt_tokens, output_tokens : array_like of int, shape (n_requests,)
        As in :class:`Requests`.
    reused_tokens : array_like of int, shape (n_requests,), optional
        None of any prompt by default.
    blocks : iterable of iterable, optional
        For each request the ids of its prompt's blocks: anything that can be a key of a dict.
    block_tokens : int
        Tokens that an id stands for; needed with ``blocks``. Ids beyond the prompt are left out.
    label : str
        How an error begins.

    Raises
    ------
    TraceError
        One line with the first row, counted from 1, that is not sorted, not positive, or reuses
        more than its prompt.
    """
    arrival = np.asarray(arrival_ps, np.int64)
    prompt, output = (np.asarray(a, np.int64) for a in (prompt_tokens, output_tokens))
    n = len(arrival)
    reused = np.zeros(n, np.int64) if reused_tokens is None else np.asarray(reused_tokens, np.int64)
    _check_rows(label, "time", arrival / PS_PER_S, arrival < 0, "0 s or later")
    early = np.flatnonzero(arrival[1:] < arrival[:-1])
    if len(early):
        row = int(early[0]) + 1
        raise TraceError(
            f"{label}: row {row + 1}: time: found {arrival[row] / PS_PER_S:.9g} s after "
            f"{arrival[row - 1] / PS_PER_S:.9g} s, allowed times in ascending order"
        )
    for name, values in (("prompt_tokens", prompt), ("output_tokens", output)):
        wrong = (values < 1) | (values > MOST_TOKENS)
        _check_rows(label, name, values, wrong, f"1 to {MOST_TOKENS:,}")
    wrong = (reused < 0) | (reused > prompt)
    _check_rows(label, "reused_tokens", reused, wrong, "0 to the prompt's tokens")
    first = np.zeros(n + 1, np.int64)
    ids = np.zeros(0, np.int64)
    if blocks is not None:
        if block_tokens < 1:
            raise TraceError(f"{label}: block_tokens: found {block_tokens}, allowed 1 or more")
        known: dict[Any, int] = {}
        flat: list[int] = []
        for row, (hashes, tokens) in enumerate(zip(blocks, prompt.tolist(), strict=True)):
            most = -(-tokens // block_tokens)
            flat += [known.setdefault(name, len(known)) for name in list(hashes)[:most]]
            first[row + 1] = len(flat)
        ids = np.array(flat, np.int64)
    return Requests(
        arrival, prompt, output, reused, ids, first, block_tokens if len(ids) else 0, label
    )


def _check_rows(
    label: str, column: str, values: np.ndarray, wrong: np.ndarray, allowed: str
) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        row = int(rows[0])
        raise TraceError(
            f"{label}: row {row + 1}: {column}: found {values[row]}, allowed {allowed}"
        )


# --------------------------------------------------------------------------- lengths

#: Policies by name; filled by :func:`register_lengths`.
LENGTH_POLICIES: dict[str, type[LengthPolicy]] = {}


class LengthPolicy(Spec):
    """One way to draw how many tokens prompts or answers have."""

    policy: str
    #: Name under which a specification asks for this policy.
    name: ClassVar[str] = ""

    @abstractmethod
    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``n`` lengths: ndarray of int64, each at least 1."""


def register_lengths(cls: type[LengthPolicy]) -> type[LengthPolicy]:
    """Make a policy known under its ``name``."""
    LENGTH_POLICIES[cls.name] = cls
    return cls


@register_lengths
class ConstantLengths(LengthPolicy):
    """All alike."""

    name = "constant"
    tokens: Annotated[PositiveCount, Field(le=MOST_TOKENS)]

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return equal lengths; see :meth:`LengthPolicy.draw`."""
        return np.full(n, self.tokens, np.int64)


@register_lengths
class LognormalLengths(LengthPolicy):
    """A logarithm that is normal: ``median`` tokens, ``sigma`` the logarithm's deviation.

    Lengths beyond ``lowest`` and ``highest`` are drawn to these.
    """

    name = "lognormal"
    median: Annotated[PositiveCount, Field(le=MOST_TOKENS)]
    sigma: Annotated[Fraction, Field(ge=0, le=10)]
    lowest: PositiveCount = 1
    highest: Annotated[PositiveCount, Field(le=MOST_TOKENS)] = MOST_TOKENS

    @model_validator(mode="after")
    def _check(self) -> LognormalLengths:
        if self.lowest > self.highest:
            raise ValueError(f"found lowest {self.lowest} above highest {self.highest}")
        return self

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return drawn lengths; see :meth:`LengthPolicy.draw`."""
        drawn = np.rint(self.median * np.exp(self.sigma * rng.standard_normal(n)))
        lengths: np.ndarray = np.clip(drawn, self.lowest, self.highest).astype(np.int64)
        return lengths


def parse_lengths(raw: Any) -> LengthPolicy:
    """Return the policy that a mapping describes; raises ValueError as :func:`parse_policy`."""
    return raw if isinstance(raw, LengthPolicy) else parse_policy(raw, LENGTH_POLICIES)


# --------------------------------------------------------------------------- arrivals

#: Policies by name; filled by :func:`register_arrivals`.
ARRIVAL_POLICIES: dict[str, type[ArrivalPolicy]] = {}


class ArrivalPolicy(Spec):
    """One way to get requests."""

    policy: str
    #: Name under which a specification asks for this policy.
    name: ClassVar[str] = ""

    @abstractmethod
    def requests(
        self, folder: Path, duration_ps: int | None, block_tokens: int, seed: int
    ) -> Requests:
        """Return the requests of a run.

        Parameters
        ----------
        folder : Path
            Where relative file names of the specification start.
        duration_ps : int or None
            Requests arrive before this; None: a file's all.
        block_tokens : int
            Tokens that an id of ``prefix_hashes`` stands for.
        seed : int
            Of times and lengths, each with a generator of its own.

        Raises
        ------
        TraceError
            If a file is missing or malformed, or there are too many requests.
        """


def register_arrivals(cls: type[ArrivalPolicy]) -> type[ArrivalPolicy]:
    """Make a policy known under its ``name``."""
    ARRIVAL_POLICIES[cls.name] = cls
    return cls


def parse_arrivals(raw: Any) -> ArrivalPolicy:
    """Return the policy that a mapping describes; raises ValueError as :func:`parse_policy`."""
    return raw if isinstance(raw, ArrivalPolicy) else parse_policy(raw, ARRIVAL_POLICIES)


class DrawnArrivals(ArrivalPolicy):
    """Requests whose times and lengths are drawn.

    ``reused_share`` of each prompt is said to be in the context cache.
    """

    prompt_tokens: Annotated[SerializeAsAny[LengthPolicy], BeforeValidator(parse_lengths)]
    output_tokens: Annotated[SerializeAsAny[LengthPolicy], BeforeValidator(parse_lengths)]
    reused_share: Annotated[Fraction, Field(ge=0, le=1)] = 0.0

    @property
    @abstractmethod
    def mean_rate_per_s(self) -> float:
        """Mean of the requests a second."""

    @abstractmethod
    def times_s(self, duration_s: float, rng: np.random.Generator) -> np.ndarray:
        """Return the arrivals before ``duration_s``: ndarray of float64, ascending."""

    def requests(
        self, folder: Path, duration_ps: int | None, block_tokens: int, seed: int
    ) -> Requests:
        """Draw requests; see :meth:`ArrivalPolicy.requests`."""
        label = f"arrivals ({self.policy})"
        if duration_ps is None:
            raise TraceError(f"{label}: duration: required, since drawn arrivals have no end")
        expected = self.mean_rate_per_s * duration_ps / PS_PER_S
        if expected > MOST_REQUESTS:
            raise TraceError(
                f"{label}: found about {expected:,.0f} requests, allowed up to {MOST_REQUESTS:,}"
            )
        times = self.times_s(duration_ps / PS_PER_S, np.random.default_rng([seed, _FOR_TIMES]))
        arrival = np.minimum(np.rint(times * PS_PER_S).astype(np.int64), duration_ps - 1)
        prompt, output = (
            lengths.draw(len(arrival), np.random.default_rng([seed, use]))
            for lengths, use in (
                (self.prompt_tokens, _FOR_PROMPTS),
                (self.output_tokens, _FOR_OUTPUTS),
            )
        )
        reused = np.floor(prompt * self.reused_share).astype(np.int64)
        return make_requests(arrival, prompt, output, reused_tokens=reused, label=label)


@register_arrivals
class PoissonArrivals(DrawnArrivals):
    """Arrivals that do not know of each other: gaps are exponential."""

    name = "poisson"
    rate_per_s: Annotated[Fraction, Field(gt=0)]

    @property
    def mean_rate_per_s(self) -> float:
        """Mean of the requests a second."""
        return self.rate_per_s

    def times_s(self, duration_s: float, rng: np.random.Generator) -> np.ndarray:
        """Return the arrivals; see :meth:`DrawnArrivals.times_s`."""
        return _poisson(self.rate_per_s, duration_s, rng)


@register_arrivals
class BurstArrivals(DrawnArrivals):
    """Arrivals in bursts: a Poisson process whose rate a chain of two states switches.

    It stays in a burst for a time that is exponential with mean ``mean_burst``, and in a lull for
    one with mean ``mean_lull``; the state at the start is drawn as likely as it is in the long run.
    """

    name = "bursts"
    burst_rate_per_s: Annotated[Fraction, Field(gt=0)]
    lull_rate_per_s: Annotated[Fraction, Field(ge=0)]
    mean_burst: Annotated[Picoseconds, Field(gt=0)]
    mean_lull: Annotated[Picoseconds, Field(gt=0)]

    @property
    def burst_share(self) -> float:
        """Share of the time that is in bursts, in the long run."""
        return self.mean_burst / (self.mean_burst + self.mean_lull)

    @property
    def mean_rate_per_s(self) -> float:
        """Mean of the requests a second, in the long run."""
        share = self.burst_share
        return share * self.burst_rate_per_s + (1 - share) * self.lull_rate_per_s

    def times_s(self, duration_s: float, rng: np.random.Generator) -> np.ndarray:
        """Return the arrivals; see :meth:`DrawnArrivals.times_s`."""
        in_burst = bool(rng.random() < self.burst_share)
        at, parts = 0.0, []
        while at < duration_s:
            mean = self.mean_burst if in_burst else self.mean_lull
            length = min(rng.exponential(mean / PS_PER_S), duration_s - at)
            rate = self.burst_rate_per_s if in_burst else self.lull_rate_per_s
            parts.append(at + _poisson(rate, length, rng))
            at += length
            in_burst = not in_burst
        return np.concatenate(parts)


def _poisson(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> np.ndarray:
    """Return a Poisson process: a Poisson number of times, each anywhere."""
    return np.sort(rng.random(rng.poisson(rate_per_s * duration_s))) * duration_s


@register_arrivals
class FileArrivals(ArrivalPolicy):
    """Requests of a file, in its order and at its times."""

    name = "file"
    file: str

    def requests(
        self, folder: Path, duration_ps: int | None, block_tokens: int, seed: int
    ) -> Requests:
        """Read the file; see :meth:`ArrivalPolicy.requests`."""
        found = load_requests(folder / self.file, block_tokens=block_tokens)
        return found if duration_ps is None else found.until(duration_ps)


# --------------------------------------------------------------------------- files


class RequestFormat:
    """One way to write requests down."""

    name: ClassVar[str] = ""
    #: Columns without which it is not this format.
    required: ClassVar[tuple[str, ...]] = ()
    #: Columns that it may have besides.
    optional: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, table: pd.DataFrame, block_tokens: int, label: str) -> Requests:
        """Return the requests of a table that has all required columns.

        Raises
        ------
        TraceError
            One line with file, row and column.
        """


class UbfabricFormat(RequestFormat):
    """Our own columns: times in seconds, or text with a unit."""

    name = "ubfabric"
    required = ("time", "prompt_tokens", "output_tokens")
    optional = ("reused_tokens", "prefix_hashes")

    def read(self, table: pd.DataFrame, block_tokens: int, label: str) -> Requests:
        """Return the requests; see :meth:`RequestFormat.read`."""
        if set(self.optional) <= set(table.columns):
            raise TraceError(
                f"{label}: found both reused_tokens and prefix_hashes, allowed one of them"
            )
        reused = None
        if "reused_tokens" in table:
            reused = _whole(table, "reused_tokens", label)
        return make_requests(
            _seconds_ps(table["time"], label),
            _whole(table, "prompt_tokens", label),
            _whole(table, "output_tokens", label),
            reused_tokens=reused,
            blocks=_ids(table["prefix_hashes"], label) if "prefix_hashes" in table else None,
            block_tokens=block_tokens,
            label=label,
        )


class AzureFormat(RequestFormat):
    """Azure's LLM inference traces; times count from the first row."""

    name = "azure"
    required = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def read(self, table: pd.DataFrame, block_tokens: int, label: str) -> Requests:
        """Return the requests; see :meth:`RequestFormat.read`."""
        stamps = pd.to_datetime(table["TIMESTAMP"], format="ISO8601", utc=True, errors="coerce")
        _check_rows(
            f"{label}",
            "TIMESTAMP",
            table["TIMESTAMP"].to_numpy(),
            stamps.isna().to_numpy(),
            "a time such as 2023-11-16 18:15:46.6805900",
        )
        ticks_ns = stamps.dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
        arrival = (ticks_ns - ticks_ns[0]) * 1000
        if len(arrival) and arrival.min() < 0:  # said as a matter of order, not of the first row
            row = int(np.flatnonzero(ticks_ns[1:] < ticks_ns[:-1])[0]) + 1
            raise TraceError(
                f"{label}: row {row + 1}: TIMESTAMP: found {table['TIMESTAMP'].iloc[row]} after "
                f"{table['TIMESTAMP'].iloc[row - 1]}, allowed times in ascending order"
            )
        return make_requests(
            arrival,
            _whole(table, "ContextTokens", label),
            _whole(table, "GeneratedTokens", label),
            label=label,
        )


class MooncakeFormat(RequestFormat):
    """Mooncake's traces: milliseconds, and ids of blocks of 512 tokens that are really reused."""

    name = "mooncake"
    required = ("timestamp", "input_length", "output_length", "hash_ids")

    def read(self, table: pd.DataFrame, block_tokens: int, label: str) -> Requests:
        """Return the requests; see :meth:`RequestFormat.read`."""
        return make_requests(
            _whole(table, "timestamp", label) * 10**9,
            _whole(table, "input_length", label),
            _whole(table, "output_length", label),
            blocks=_ids(table["hash_ids"], label),
            block_tokens=MOONCAKE_BLOCK_TOKENS,
            label=label,
        )


#: Formats by their columns.
REQUEST_FORMATS: tuple[RequestFormat, ...] = (UbfabricFormat(), AzureFormat(), MooncakeFormat())


def load_requests(path: str | Path, *, block_tokens: int = 128) -> Requests:
    """Read a file of requests; its format is recognised by its columns.

    Parameters
    ----------
    path : path
        ``.csv`` with a header line, ``.jsonl`` with one object a line, or ``.parquet``; columns as
        in the module's text. Other columns are passed over.
    block_tokens : int
        Tokens that an id of the column ``prefix_hashes`` stands for.

    Returns
    -------
    Requests

    Raises
    ------
    TraceError
        One line with file, row (counted from 1, the header not counted) and column: what was
        found and what is allowed.

    Examples
    --------
    >>> len(load_requests("AzureLLMInferenceTrace_conv.csv"))           # doctest: +SKIP
    19366
    """
    label = str(path)
    table = _read_table(Path(path))
    names = set(table.columns)
    for form in REQUEST_FORMATS:
        if set(form.required) <= names:
            if not len(table):
                raise TraceError(f"{label}: found no requests, allowed one or more")
            return form.read(table, block_tokens, label)
    nearest = max(REQUEST_FORMATS, key=lambda form: len(names & set(form.required)))
    missing = [name for name in nearest.required if name not in names]
    if len(missing) < len(nearest.required):
        raise TraceError(
            f"{label}: column {missing[0]!r} is missing; requests of the format {nearest.name} "
            f"have {', '.join(nearest.required)}"
        )
    known = "; ".join(f"{form.name}: {', '.join(form.required)}" for form in REQUEST_FORMATS)
    found = ", ".join(map(str, table.columns)) or "none"
    raise TraceError(f"{label}: found the columns {found}; allowed are those of {known}")


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
        if suffix == ".parquet":
            return pq.read_table(path).to_pandas()
        if suffix == ".jsonl":
            return _read_lines(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise TraceError(f"{path}: cannot be read: {reason}") from None
    raise TraceError(f"{path}: found ending {suffix!r}, allowed .csv, .jsonl, .parquet")


def _read_lines(path: Path) -> pd.DataFrame:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise TraceError(
                    f"{path}: line {number}: found {line.strip()[:40]!r}, allowed a JSON object"
                )
            rows.append(row)
    return pd.DataFrame(rows)


def _whole(table: pd.DataFrame, column: str, label: str) -> np.ndarray:
    """Return a column of whole numbers as int64."""
    values = table[column]
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    # what is beyond 2**53 could not be told from its neighbours
    wrong = ~(np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53))
    _check_rows(label, column, values.to_numpy(), wrong, "a whole number")
    whole: np.ndarray = numbers.astype(np.int64)
    return whole


def _seconds_ps(values: pd.Series, label: str) -> np.ndarray:
    """Return times, in seconds or with a unit, in picoseconds."""
    seconds = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    with np.errstate(invalid="ignore"):
        within = np.abs(seconds) <= 9e6
    times: np.ndarray = np.rint(np.where(within, seconds, 0.0) * PS_PER_S).astype(np.int64)
    for row in np.flatnonzero(~within).tolist():
        text = values.iloc[row]
        try:
            times[row] = parse_time_ps(text)
        except (ValueError, OverflowError):
            raise TraceError(
                f"{label}: row {row + 1}: time: found {text!r}, allowed seconds, or text with a "
                "unit such as '1.5 s'"
            ) from None
    return times


def _ids(values: pd.Series, label: str) -> Iterable[Iterable[Any]]:
    """Yield the ids of each row: a list, or text such as ``3;17;40`` or ``[3, 17, 40]``."""
    for row, value in enumerate(values):
        if isinstance(value, str):
            yield [part for part in value.strip("[] ").replace(",", ";").split(";") if part.strip()]
        elif isinstance(value, (list, tuple, np.ndarray)):
            yield value
        else:
            raise TraceError(
                f"{label}: row {row + 1}: {values.name}: found {value!r}, allowed a list of ids, "
                "or text such as 3;17;40"
            )
