"""Typed results of stages: frozen dataclasses that serialise themselves with type name and format number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from lam_spark.errors import AuditError


@dataclass(frozen=True)
class StageResult:
    """Base class of what stages return; the audit stores `to_json`, the report reads it back with `from_json`.

    A subclass is a frozen dataclass of plain values: numbers, texts, tuples, dictionaries and further dataclasses.
    Raise `FORMAT` when a field is added, removed or changes its meaning.
    """

    FORMAT: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """One line for people."""
        raise NotImplementedError

    @property
    def details(self) -> tuple[str, ...]:
        """Further lines for people, after the message; none by default."""
        return ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What people should know although the stage succeeded, one sentence each; none by default.

        They are printed on stdout and are in the summary of a run.
        """
        return ()

    @property
    def summary(self) -> Mapping[str, Any]:
        """Further values for the summary of a run whose last stage this is; empty by default."""
        return {}

    @property
    def counts(self) -> Mapping[str, int]:
        """Counts for the log and the summary of a run; by default all fields that are integers."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {
            name: value for name, value in values if isinstance(value, int) and not isinstance(value, bool)
        }

    def to_json(self) -> dict[str, Any]:
        """Type name, format number and values as plain JSON values."""
        values = TypeAdapter(type(self)).dump_python(self, mode="json")
        return {"type": type(self).__name__, "format": self.FORMAT, "values": values}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            AuditError: The values are of another type, of another format, or damaged.
        """
        expected, actual = (cls.__name__, cls.FORMAT), (stored.get("type"), stored.get("format"))
        if actual != expected:
            raise AuditError(
                f"expected a result {expected[0]} of format {expected[1]}, found {actual[0]} of format {actual[1]}: it "
                "was written by another version of lam_spark. Run the stage again"
            )
        try:
            return TypeAdapter(cls).validate_python(stored["values"])
        except (KeyError, ValidationError) as error:
            raise AuditError(
                f"the stored values are not those of a result {expected[0]} of format {expected[1]}: they were "
                "written by another version of lam_spark or damaged. Run the stage again"
            ) from error
