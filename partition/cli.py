"""The commands of `python -m partition`, made from the typed options of each.

The heavy imports (DGL, faiss, torch, pyarrow) wait until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from partition.errors import InputError, exit_with_one_line
from partition.export.options import ExportOptions
from partition.extract.request import Request
from partition.options import BuildOptions, Options, RecutOptions
from partition.synthetic.options import SyntheticOptions

Typed = TypeVar("Typed", bound=Options)
Prepared = Annotated[Path, typer.Argument(metavar="PREPARED", help="Folder written by build.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prepare data for training: generate or read it, cut it into parts, check it.",
)


def build(options: BuildOptions) -> None:
    """Read, clean, split and cut into parts: from raw files to a prepared folder."""
    from partition.build import build as run

    run(options)
    print(f"Next: python -m cm3_dist.train data.path={options.output}")


def recut(options: RecutOptions) -> None:
    """Cut a prepared folder into another number of parts, without reading the raw data again."""
    from partition.recut import recut as run

    run(options)
    print(f"Next: python -m cm3_dist.train data.path={options.output}")


def export(options: ExportOptions) -> None:
    """Write the split and the features of a prepared folder for other programs, with your ids."""
    from partition.export.run import export as run

    for line in run(options):
        print(line)


def extract(request: Request) -> None:
    """Encode texts or images of a catalogue into features. The same command resumes an interrupted run."""
    from partition.extract.run import extract as run

    for line in run(request).report(request):
        print(line)


def synthetic(options: SyntheticOptions) -> None:
    """Generate a multimodal data set of any size: with planted tastes, or grown from a real one."""
    if options.expand is None:
        from partition.synthetic.planted import synthesise

        synthesise(options)
    else:
        from partition.build import read_dataset
        from partition.synthetic.fractal import expand

        expand(options, read_dataset)
    print(f"Next: python -m partition build --input {options.output} --parts 4 --output prepared/{options.output.name}")


def verify(root: Prepared) -> None:
    """Check every invariant of a prepared folder."""
    from partition.folder.verify import verify as run

    manifest = run(root)
    print(f"{root}: whole; {manifest.num_parts} parts, digest {manifest.digest()[:12]}")


def stats(
    root: Prepared,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw histograms of the degrees.")] = None,
) -> None:
    """Show sizes, balance and edge cut of a prepared folder."""
    from partition.folder.stats import describe

    describe(root, picture)


def main() -> None:
    """Runs the command line; an error that the user can correct becomes one line on stderr and exit code 2."""
    exit_with_one_line(app)


def typed_command(model: type[Typed], run: Callable[[Typed], None], more: str | None = None) -> Callable[..., None]:
    """A typer command whose options are the fields of `model`.

    Args:
        model: the options.
        run: gets them, validated; its docstring is the help.
        more: a list option that also takes the arguments without an option, as from `--input *.csv`.
    """

    def command(context: typer.Context, **values: Any) -> None:
        given = {name: value for name, value in values.items() if _is_given(context, name)}
        if more is not None:
            given[more] = [*given[more], *given.pop("more", [])]
        try:
            options = model(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).replace("_", "-")
            raise InputError(f"--{name}: {first['msg']}", "option.value") from None
        run(options)

    parameters = [_parameter(name, field) for name, field in model.model_fields.items()]
    if more is not None:
        argument = typer.Argument(metavar="FILE", help="More input, as from `--input *.csv`.")
        parameters.append(_keyword("more", Annotated[list[str] | None, argument], None))
    command.__signature__ = inspect.Signature([_CONTEXT, *parameters])  # type: ignore[attr-defined]
    command.__doc__ = run.__doc__
    return command


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_CONTEXT = _keyword("context", typer.Context)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """One option of the command line."""
    extra: dict[str, Any] = field.json_schema_extra  # type: ignore[assignment]
    if extra["argument"]:
        return _keyword(
            name, Annotated[field.annotation, typer.Argument(metavar=extra["metavar"], help=field.description)]
        )
    option = typer.Option(
        f"--{name.replace('_', '-')}",  # given, so that a flag has no --no-flag
        help=field.description,
        rich_help_panel=extra["panel"],
        metavar=extra["metavar"],
        min=next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None),
        max=next((bound.le for bound in field.metadata if hasattr(bound, "le")), None),
    )
    if extra["as_text"]:
        return _keyword(name, Annotated[str | None, option], None)
    default = inspect.Parameter.empty if field.is_required() else field.default
    return _keyword(name, Annotated[field.annotation, option], default)


app.command("build")(typed_command(BuildOptions, build, more="input"))
app.command("recut")(typed_command(RecutOptions, recut))
app.command("export")(typed_command(ExportOptions, export))
app.command("extract")(typed_command(Request, extract))
app.command("verify")(verify)
app.command("stats")(stats)
app.command("synthetic")(typed_command(SyntheticOptions, synthetic))
