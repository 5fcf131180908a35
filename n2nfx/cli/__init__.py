"""The command line: data on stdout, narration on stderr, and an exit code that says what happened.

0 done, 1 a bug, 2 usage, 3 a model or job that cannot be operated on, 4 a damaged input file,
5 a run that failed, 130 interrupted. A command's own file is imported only when it runs, so that
help needs no torch.
"""

from importlib import import_module
from typing import Any

import click

from n2nfx.cli.text import printable
from n2nfx.errors import CannotOperate, N2nfxError, did_you_mean

_COMMANDS = {
    "transform": "Prune a model at initialization and splice N2NSkip branches into it.",
    "inspect": "Show a model's layers, and where skips could go.",
    "analyze": "Show a network's channel graph and its heat; compare it with a reference.",
    "verify": "Check that an artifact is whole and says the truth of itself.",
    "recipe": "Run whole tables of networks by recipe, and report them beside the paper's numbers.",
    "data": "List, fetch and check data sets.",
    "models": "List the models that can be named.",
    "passes": "List the passes and their arguments.",
    "doctor": "Examine whether n2nfx can work here, and name what would help.",
}


class _Commands(click.Group):
    """Commands by name; each is the function of its name in the file of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return getattr(import_module(f"n2nfx.cli.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong for a person is told in a line, never a traceback."""
        try:
            return super().invoke(ctx)
        except N2nfxError as error:
            told = "\n".join(map(printable, str(error).splitlines()))
            click.echo(f"error: {told}", err=True)
            ctx.exit(error.exit_code)
        except (OSError, MemoryError) as error:
            told = printable(str(error)) or type(error).__name__
            click.echo(f"error: the system refused: {told}", err=True)
            ctx.exit(CannotOperate.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


@click.group("n2nfx", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="n2nfx", prog_name="n2nfx")
def main() -> None:
    """Model surgery over torch.fx graphs: sparse networks with exactly the weights asked for."""
