"""The tables' part of a preparation: one chain of Ibis expressions that DuckDB or Spark runs."""
