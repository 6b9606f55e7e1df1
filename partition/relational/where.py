"""`--where`: a condition in the SQL of the engine."""

from __future__ import annotations

import ibis.expr.types as ir
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from partition.errors import InputError, one_line
from partition.read.table_file import TableFile
from partition.relational.engine import Engine


class Where:
    """A condition on the columns of a log.

    Args:
        text: the condition.
        engine: whose SQL it is.

    Raises:
        InputError: `option.where`, it is not a condition.
    """

    def __init__(self, text: str, engine: Engine) -> None:
        self._text, self._engine = text, engine
        try:
            self._condition = sqlglot.parse_one(text, dialect=engine.dialect)
        except SqlglotError as error:
            raise self.refused(error) from None
        if not isinstance(self._condition, exp.Condition):
            raise InputError(f'--where "{text}": not a condition such as "rating >= 4"', "option.where")

    def columns(self, file: TableFile) -> list[str]:
        """The columns of a file that the condition names.

        Raises:
            InputError: `option.where`, the file lacks one.
        """
        found = []
        for column in self._condition.find_all(exp.Column):
            name = column.parts[0].name  # the others are fields of it
            own = next((own for own in file.names if own == name), None)
            own = own or next((own for own in file.names if own.lower() == name.lower()), None)
            if own is None:
                message = f'--where "{self._text}": no column {name!r}; the columns are {", ".join(file.names)}'
                raise file.error(message, code="option.where")
            found.append(own)
        return list(dict.fromkeys(found))

    def keep(self, table: ir.Table, name: str) -> ir.Table:
        """The rows for which the condition is true.

        Args:
            table: the rows.
            name: of a view of them, which no other has.

        Raises:
            InputError: `option.where`, the engine refuses the condition.
        """
        query = exp.select("*").from_(name).where(self._condition)
        dialect = self._engine.dialect
        try:
            kept: ir.Table = table.alias(name).sql(query.sql(dialect=dialect), dialect=dialect)
            kept.schema()
        except self._engine.errors as error:
            raise self.refused(error) from None
        return kept

    def computed(self, table: ir.Table) -> ir.Table:
        """Computes what was made of tables that `keep` returned: once, so that `random()` has one value per row.

        Raises:
            InputError: `option.where`, the condition cannot be computed for one of the rows.
        """
        try:
            return self._engine.keep(table)
        except self._engine.errors as error:
            raise self.refused(error) from None

    def refused(self, error: Exception) -> InputError:
        """What the engine says about it, in one line."""
        return InputError(f'--where "{self._text}": {one_line(error)[:300]}', "option.where")
