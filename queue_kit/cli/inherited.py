"""Options of a group of commands that may stand before the command as well as behind it."""

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource


class Inherited(click.Option):
    """An option that a command takes over from its group. What was typed goes before what the environment says, and
    what stands behind the command before what stands in front of it."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        """The value, as text, and where it comes from."""
        value, source = super().consume_value(ctx, opts)
        typed = f"queue_kit.{self.name}"
        if source is ParameterSource.COMMANDLINE:
            ctx.meta[typed] = value  # shared by a group and its command
        elif typed in ctx.meta:
            return ctx.meta[typed], ParameterSource.COMMANDLINE
        return value, source
