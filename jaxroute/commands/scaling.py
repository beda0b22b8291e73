"""What `jaxroute bench --devices` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jaxroute.commands.options import names_of
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.scaling import Point, ScalingReport


def counts_of(text: str) -> list[int]:
    """The numbers of devices, ascending.

    Raises:
      InputError: something else.
    """
    names = names_of(text)
    if not names or not all(name.isdecimal() and int(name) > 0 for name in names):
        raise InputError(f"--devices {text}: must be numbers of devices with commas, such as 1,2,4,8")
    return sorted({int(name) for name in names})


def title_of(point: Point) -> str:
    """A line for the log."""
    return f"{point.devices} devices, {point.envs} environments: {point.env_steps_per_s:,.0f} env-steps/s"


def show_scaling(report: ScalingReport, console: Console) -> None:
    """Prints what was measured and what is expected."""
    console.print(_measured(report))
    shared = report.cores is not None and report.points[-1].devices > report.cores
    if shared:
        console.print(
            f"These devices are parts of one CPU and share its {report.cores} cores: more of them than cores cannot be "
            "faster, and the column 'of the cores' is against what the cores could do.",
            soft_wrap=True,
        )
    calls = ", ".join(f"{count} x {size:,} B" for size, count in sorted(report.sums.items(), reverse=True))
    total = sum(size * count for size, count in report.sums.items())
    console.print(f"sums over the devices in one update: {total:,} B in all ({calls})", soft_wrap=True)
    console.print(_expected(report))
    links = report.links
    console.print(
        f"An expectation, not a measurement: an update of {1e3 * report.expected_from_s:,.1f} ms on one device, and "
        f"all-reduces that nothing hides: {links.host_gb_s:g} GB/s and {links.host_us:g} us a hop within "
        f"{links.per_host} devices, {links.network_gb_s:g} GB/s and {links.network_us:g} us between servers (--links)",
        soft_wrap=True,
    )
    if report.cores is not None:
        console.print(
            "That update is this CPU's: on a GPU it is shorter, and the all-reduces weigh more; give its time as "
            "--update-ms, or run this there.",
            soft_wrap=True,
        )


def _measured(report: ScalingReport) -> Table:
    what = f"{report.device}, {report.config}, {report.envs_per_device} environments a device"
    table = Table(title=f"weak scaling, measured: {what}", title_justify="left")
    for heading in ("devices", "envs", "env-steps/s", "efficiency", "of the cores", "update ms", "all-reduces ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in report.points:
        table.add_row(
            str(point.devices),
            str(point.envs),
            f"{point.env_steps_per_s:,.0f}",
            f"{point.efficiency:.0%}",
            f"{point.efficiency_of_cores:.0%}",
            f"{1e3 * point.update_s:,.1f}",
            f"{1e3 * point.all_reduce_s:,.2f}",
        )
    return table


def _expected(report: ScalingReport) -> Table:
    table = Table(title="weak scaling, expected of GPUs", title_justify="left")
    for heading in ("devices", "env-steps/s", "efficiency", "update ms", "all-reduces ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in report.expected:
        table.add_row(
            str(each.devices),
            f"{each.env_steps_per_s:,.0f}",
            f"{each.efficiency:.1%}",
            f"{1e3 * each.update_s:,.1f}",
            f"{1e3 * each.all_reduce_s:,.2f}",
        )
    return table
