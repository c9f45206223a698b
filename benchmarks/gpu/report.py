"""The result of a run: one table to read and one JSON file to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_HEAD = (
    f"{'case':54} {'against':24} {'backend':9} {'peer ms':>9} {'ours ms':>9} {'ratio':>7} {'floor':>6}"
    f" {'in a row':>8} {'of copy':>8} {'of roofline':>14}"
)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per case and backend; shortfalls and problems are marked."""
    return [_HEAD, *(_line(row) for row in rows)] if rows else ["no case was measured"]


def _line(row: Mapping[str, Any]) -> str:
    start = f"{row['case']:54} {row['peer'][:24]:24} {row['backend']:9}"
    floor = "-" if row["floor"] is None else f"{row['floor']:.1f}"
    if row["problem"] and "ours_ms" in row:
        return f"{start} {'-':>9} {row['ours_ms']:9.3f} NO RATIO (floor {floor}): {row['problem']}"
    if row["problem"]:
        return f"{start} NOT TIMED (floor {floor}): {row['problem']}"
    share = f"{row['of_copy_bandwidth']:.0%}"
    if row["share_floor"] is not None:
        share += f"/{row['share_floor']:.0%}"
    return (
        f"{start} {row['peer_ms']:9.3f} {row['ours_ms']:9.3f} {row['ratio']:7.2f} {floor:>6}"
        f" {row['ratio_in_a_row']:8.2f} {share:>8} {row['of_roofline']:8.0%} {row['bound']:5}"
        f"{' SHORT' if row['short'] else ''}"
    )


_HOST_HEAD = (
    f"{'host time of a call':54} {'backend':9} {'peer us':>8} {'ours us':>8} {'times':>6} {'launches':>8} {'peer':>5}"
)


def host_table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per call and backend: microseconds of the host and launches, next to those of the peer."""
    return [_HOST_HEAD, *(_host_line(line) for line in lines)] if lines else []


def _host_line(line: Mapping[str, Any]) -> str:
    start = f"{line['call']:54} {line['backend']:9}"
    counts = [line.get("launches"), line.get("peer_launches")]
    ours, peer = ("-" if count is None else f"{count:g}" for count in counts)
    if "host_us" not in line:
        return (
            f"{start} NOT TIMED: {line['problem']}" if line["problem"] else f"{start} {ours} launches, the peer {peer}"
        )
    mark = f" OVER {line['at_most']:g}" if line["over"] else ""
    return (
        f"{start} {line['peer_us']:8.1f} {line['host_us']:8.1f} {line['times_peer']:6.2f} {ours:>8} {peer:>5}{mark}"
        f"{line['problem'] and '  ' + line['problem']}"
    )


def told(source: str, line: Mapping[str, Any]) -> str:
    """Return the text to print for a line as soon as it exists; lines of a table are printed as in the table."""
    if source.startswith("rows-"):
        return _line(line)
    if source.startswith("host-"):
        return _host_line(line)
    return f"{source}: {', '.join(f'{name} {value}' for name, value in line.items() if value != '')}"


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table for docs/results/speed.md."""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    lines = [
        f"Measured on {result['date']} at commit {result['commit']} on {result['device']}, driver {result['driver']}, "
        f"{versions}.",
        "",
        "| case | against | backend | peer, ms | simmst, ms | ratio | to reach | of copy bandwidth | of roofline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["case"], row["peer"], row["backend"]]
        floor = "" if row["floor"] is None else f"{row['floor']:g}"
        if row["problem"]:
            cells += ["", "", f"not timed: {row['problem']}", floor, "", ""]
        else:
            cells += [f"{row['peer_ms']:.3f}", f"{row['ours_ms']:.3f}", f"{row['ratio']:.2f}", floor]
            cells += [f"{row['of_copy_bandwidth']:.0%}", f"{row['of_roofline']:.0%} {row['bound']}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(result: Mapping[str, Any]) -> list[str]:
    """Return what was run and how it ended, for the lines under the table."""
    rows = result["rows"]
    short = [row for row in rows if row["short"]]
    untimed = [row for row in rows if row["problem"]]
    stages = ", ".join(f"{stage['stage']} {stage['state']}" for stage in result["stages"])
    machine = result.get("machine") or {}
    products = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in machine.get("products", {}).items())
    lines = [] if not machine else [f"copy {machine['copy'] / 1e12:.2f} TB/s, products in TFLOP/s: {products}"]
    if result["dry_run"]:
        lines.append("DRY RUN on the CPU with tiny shapes: the figures mean nothing")
    return [
        *lines,
        f"{result['device']}, driver {result['driver']}, commit {result['commit']}, {result['date']}",
        f"stages: {stages}",
        f"{len(rows)} rows: {len(short)} below the figure to reach (SHORT), {len(untimed)} not timed",
    ]


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write the result completely or not at all, because it is written after every stage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
