"""``radix plugins``: who is registered, what they implement, which adapters they announce."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from radixbackend.plugins import PluginInfo, Plugins
from radixbackend.types import AdapterInfo

if TYPE_CHECKING:
    from rich.table import Table


def list_plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List plugins, the hooks they implement and the adapters they announce."""
    plugins: Plugins = context.obj
    listed, adapters = plugins.describe(), plugins.adapters()
    if as_json:
        announced = [{"plugin": name, **asdict(adapter)} for name, adapter in adapters]
        print(json.dumps({"plugins": [asdict(plugin) for plugin in listed], "adapters": announced}, indent=2))
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.print(_plugin_table(listed))
    if adapters:
        console.print(_adapter_table(adapters))
    else:
        console.print("No plugin announces an adapter to a framework.")


def _plugin_table(plugins: Sequence[PluginInfo]) -> Table:
    table = _table("Plugins, asked from the last to the first", "plugin", "version", "implements")
    for plugin in plugins:
        table.add_row(
            plugin.name, plugin.version, f"broken: {plugin.fault}" if plugin.fault else "\n".join(plugin.hooks)
        )
    return table


def _adapter_table(adapters: Sequence[tuple[str, AdapterInfo]]) -> Table:
    table = _table("Adapters", "adapter", "version", "framework", "provides", "announced by")
    for name, adapter in adapters:
        table.add_row(adapter.name, adapter.version, adapter.framework, "\n".join(adapter.provides), name)
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # names are copied, so none is cut short
    return table
