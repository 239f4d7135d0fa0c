"""The command line: parse, call one function, print."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import click

from onnx_obd._version import __version__
from onnx_obd.errors import OnnxObdError, UsageError
from onnx_obd.options import TRUST, UNIT_AMOUNTS, VARIANTS
from onnx_obd.plan.scope import SCOPES

CPU = "CPUExecutionProvider"


class MainOrCommand(click.Group):
    """``onnx-obd MODEL ...`` is the main job; the named sub-commands stand beside it."""

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and args[0] not in self.commands:
            return "prune", self.commands["prune"], args
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # The options of the main job may come before the model: hand everything but --help and --version on.
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("onnx-obd", "MODEL --data PATH [OPTIONS]\n        onnx-obd COMMAND [ARGS]...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options (see also 'onnx-obd prune --help')"):
            formatter.write_dl([(", ".join(p.opts), p.help or "") for p in self.get_params(ctx)])
        self.format_commands(ctx, formatter)


EXIT_INTERRUPTED = 130


@click.group(cls=MainOrCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="onnx-obd")
def cli() -> None:
    """Make an ONNX model smaller with Optimal Brain Damage, and prove it in onnxruntime.

    \b
    onnx-obd model.onnx --data calib/ --sparsity 0.7
    """


def _patterns(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(pattern for item in value for pattern in item.split(",") if pattern)


_prune_options = [
    click.argument("model", type=click.Path(path_type=Path)),
    click.option("--data", required=True, metavar="PATH", help="Samples: a folder, a file, or module:function."),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="Result; MODEL.obd.onnx by default."),
    click.option("-s", "--sparsity", type=float, help="Fraction of the weights to delete, in [0, 1); 0.5 by default."),
    click.option("--speedup", type=float, metavar="X", help="Remove whole units until it runs X times as fast."),
    click.option("--target-latency", metavar="3ms", help="The same by the time of one run."),
    click.option("--remove-units", type=float, metavar="X", help="Instead: remove this fraction of all units."),
    click.option("--keep-frontier", metavar="FOLDER", help="Keep the model of each step towards the speed there."),
    click.option("--max-drop", type=float, help="Instead: the fall of accuracy (or agreement) to allow, e.g. 0.01."),
    click.option("--loss-budget", type=float, help="Instead: the rise of the held-back loss to allow."),
    click.option("--target-size", metavar="SIZE", help="Instead: the size of the file to come below, e.g. 5MB."),
    click.option("--nm", metavar="N:M", help="Instead: at most N of M consecutive weights, e.g. 2:4."),
    click.option("--scope", type=click.Choice(SCOPES), default="global", show_default=True, help="Ranked together."),
    click.option("--sparsity-of", multiple=True, metavar="PATTERN=X", help="A sparsity for some tensors alone."),
    click.option("--labels", type=click.Path(path_type=Path), help="Labels, if they are not with the data."),
    click.option("--method", default="auto", show_default=True, help="Criterion, or auto: the best of several."),
    click.option("--curvature", default="lecun_scaled", show_default=True, help="Estimator of second derivatives."),
    click.option("--rounds", type=int, help="Delete in so many steps; 12 by default, fewer where one takes long."),
    click.option("--objective", default="auto", show_default=True, help="auto, kl, squared, ..., module:function."),
    click.option(
        "--temperature", type=float, help="Softens the outputs; by default their spread, or 1 or so with labels."
    ),
    click.option("--include", multiple=True, callback=_patterns, help="Only weights whose name matches (*, ?, [..])."),
    click.option("--exclude", multiple=True, callback=_patterns, help="Not the weights whose name matches."),
    click.option("--prune-biases", is_flag=True, help="Rank biases and normalisation parameters too."),
    click.option("--repair/--no-repair", default=True, show_default=True, help="Refit the survivors as weights go."),
    click.option("--retrain-epochs", type=int, default=0, show_default=True, help="Masked training after each round."),
    click.option(
        "--variant",
        type=click.Choice(VARIANTS),
        default="delete",
        show_default=True,
        help="Zero weights, let them decay while training, or let them return in later rounds.",
    ),
    click.option(
        "--trust",
        type=click.Choice(TRUST),
        default="note",
        show_default=True,
        help="If a round belies its prediction by over a factor of two: say so, take smaller steps, or stop.",
    ),
    click.option(
        "--recover-minutes",
        type=float,
        default=0.0,
        show_default=True,
        help="Masked training at the end; also the time to look for the most speed within a drop or a loss.",
    ),
    click.option(
        "--finetune-epochs",
        "--recover-epochs",
        "recover_epochs",
        type=int,
        default=0,
        show_default=True,
        help="The same, by passes over the samples.",
    ),
    click.option("--learning-rate", type=float, help="Relative to typical weights; found by trial by default."),
    click.option("--checkpoint", metavar="PATH", help="Save the recovery there as it goes on."),
    click.option("--resume", is_flag=True, help="Go on with the recovery saved there."),
    click.option("--held-back", type=float, default=0.25, show_default=True, help="Fraction of samples to measure on."),
    click.option("--samples", type=int, help="Use at most this many samples."),
    click.option("--batch-size", type=int, default=32, show_default=True),
    click.option("--num-probes", type=int, default=1, show_default=True, help="Random output vectors per sample."),
    click.option("--probe-samples", type=int, default=16, show_default=True, help="Samples that get them."),
    click.option("--save-curvature", metavar="PATH", help="Keep the curvature of the first round, for other targets."),
    click.option("--curvature-from", metavar="PATH", help="Use a curvature kept of this model and these samples."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--format", type=click.Choice(["auto", "dense", "sparse"]), default="auto", show_default=True),
    click.option("--batch", type=int, default=1, show_default=True, help="Samples per run when timing."),
    click.option("--threads", type=int, default=1, show_default=True, help="Of onnxruntime when timing."),
    click.option("--provider", default=CPU, show_default=True, help="Of onnxruntime when timing."),
    click.option("--benchmark/--no-benchmark", default=True, show_default=True, help="Time against the original."),
    click.option("--overwrite-input", is_flag=True, help="Allow the output to replace MODEL."),
    click.option("--json", "json_path", type=click.Path(path_type=Path), help="Report as JSON ('-': stdout)."),
    click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write the report as one HTML file."),
    click.option("-q", "--quiet", is_flag=True, help="No progress."),
    click.option("-v", "--verbose", is_flag=True, help="A traceback when something fails."),
]

_image_options = [
    click.option("--resize", help="Images: 224 (shorter side) or 224x320 (exactly, height first)."),
    click.option("--crop", help="Images: cut from the centre, 224 or 224x320."),
    click.option("--channels", type=click.Choice(["rgb", "bgr", "gray"]), help="Images: channel order."),
    click.option("--scale", help="Images: factor on the 0..255 values, e.g. 1/255."),
    click.option("--mean", help="Images: subtracted after scaling, one number or one per channel."),
    click.option("--std", help="Images: divided by afterwards, one number or one per channel."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Images: axis order."),
]
IMAGE_OPTIONS = ("resize", "crop", "channels", "scale", "mean", "std", "layout")


def _with(options: list[Callable]) -> Callable[[Callable], Callable]:
    return lambda function: reduce(lambda decorated, option: option(decorated), reversed(options), function)


def _fails_in_one_line(function: Callable[..., None]) -> Callable[..., None]:
    """Deliberate errors, and those of the machine, as one line and an exit code; a traceback only with -v."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            _fail(_interrupted(kwargs.get("checkpoint")), EXIT_INTERRUPTED)
        except OnnxObdError as error:
            _fail(str(error), error.exit_code, kwargs.get("verbose"))
        except click.ClickException:
            raise
        except MemoryError:
            _fail("out of memory; use --samples or --batch-size to take less at once", 1, kwargs.get("verbose"))
        except OSError as error:
            _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1, kwargs.get("verbose"))
        except Exception as error:  # a defect of ours: still one line
            what = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
            _fail(f"unexpected {what}; please report it with the output of -v", 1, kwargs.get("verbose"))

    return run


def _interrupted(checkpoint: str | None) -> str:
    if checkpoint is not None and Path(checkpoint).is_file():
        return f"interrupted; {checkpoint} holds the recovery so far, and --resume goes on with it"
    return "interrupted; nothing was written"


def _fail(message: str, code: int, verbose: bool | None = False) -> None:
    if verbose:
        traceback.print_exc()
    click.echo(f"onnx-obd: {' '.join(message.split())}", err=True)
    sys.exit(code)


@cli.command()
@_with(_prune_options)
@_with(_image_options)
@_fails_in_one_line
def prune(
    model: Path,
    data: str,
    output: Path | None,
    labels: Path | None,
    overwrite_input: bool,
    json_path: Path | None,
    html_path: Path | None,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Prune MODEL and prove the result (this is what 'onnx-obd MODEL' does)."""
    from onnx_obd.calibration.image_options import ImageOptions
    from onnx_obd.pipeline import prune as run
    from onnx_obd.progress import Progress
    from onnx_obd.report import render_table, to_json, write_html, write_json

    image = {name: options.pop(name) for name in IMAGE_OPTIONS}
    if not quiet and all(options[name] is None for name in UNIT_AMOUNTS):
        click.echo(WHAT_SPARSITY_BUYS, err=True)
    result = run(
        model,
        data,
        output,
        labels=labels,
        image_options=ImageOptions.from_mapping(image),
        overwrite_input=overwrite_input,
        progress=Progress(quiet=quiet),
        **options,
    )
    if html_path is not None:
        write_html(result.report, html_path)
    if json_path is not None and str(json_path) != "-":
        write_json(result.report, json_path)
    click.echo(to_json(result.report) if str(json_path) == "-" else render_table(result.report))


WHAT_SPARSITY_BUYS = (
    "Deleting single weights makes the file smaller, not onnxruntime faster: it computes zeros like any number. "
    "Removing whole channels makes it faster (--speedup); this run measures both size and speed."
)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--units", is_flag=True, help="What could be removed whole: channels, neurons, heads.")
@click.option("--saliency", is_flag=True, help="What input variables, neurons and channels are worth on --data.")
@click.option("--data", metavar="PATH", help="Samples for --saliency; with --units they also tell what does nothing.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("-v", "--verbose", is_flag=True, help="A traceback when something fails.")
@_fails_in_one_line
def inspect(model: Path, units: bool, saliency: bool, data: str | None, as_json: bool, verbose: bool) -> None:
    """List what could be pruned, what not and why. Needs no data."""
    if units:
        from onnx_obd.removable import inspect_units
        from onnx_obd.report import render_units, to_json

        whole = inspect_units(model, data)
        click.echo(to_json(whole) if as_json else render_units(whole))
        return
    if saliency:
        from onnx_obd.cells import inspect_cells
        from onnx_obd.report import render_cells, to_json

        if data is None:
            raise UsageError("saliency is measured on samples: give --data")
        cells = inspect_cells(model, data)
        click.echo(to_json(cells) if as_json else render_cells(cells))
        return
    from onnx_obd.pipeline import inspect as run
    from onnx_obd.report import render_inspection, to_json

    found = run(model)
    totals = {"nodes": found.nodes, "bytes": found.bytes}
    text = render_inspection(found.model, found.weights, found.boundaries, totals)
    click.echo(to_json(found) if as_json else text)


@cli.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option("--data", metavar="PATH", help="Samples to time with; random inputs without.")
@click.option("--batch", type=int, default=1, show_default=True, help="Samples per run.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--provider", default=CPU, show_default=True, help="Execution provider of onnxruntime.")
@click.option("--seconds", type=float, default=4.0, show_default=True, help="How long to measure.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("-v", "--verbose", is_flag=True, help="A traceback when something fails.")
@_fails_in_one_line
def bench(
    original: Path,
    other: Path,
    data: str | None,
    batch: int,
    threads: int,
    provider: str,
    seconds: float,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Time two models against each other in onnxruntime, interleaved."""
    from onnx_obd.pipeline import bench as run
    from onnx_obd.progress import Progress
    from onnx_obd.report import render_latency, to_json

    progress = Progress(quiet=quiet)
    latency = run(
        original, other, data, batch=batch, threads=threads, provider=provider, seconds=seconds, progress=progress
    )
    names = (str(original), str(other))
    click.echo(to_json(latency) if as_json else render_latency(latency, names))


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("-v", "--verbose", is_flag=True, help="A traceback when something fails.")
@_fails_in_one_line
def densify(model: Path, output: Path, verbose: bool) -> None:
    """Write MODEL with its sparse tensors stored densely again, bit for bit."""
    from onnx_obd.export import densify_model

    densify_model(model, output)
    click.echo(f"{output}: {output.stat().st_size} bytes")


def main() -> None:
    """The console script."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted; nothing was written", EXIT_INTERRUPTED)
    except click.ClickException as error:
        _fail(f"{error.format_message()}; see 'onnx-obd --help'", error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
