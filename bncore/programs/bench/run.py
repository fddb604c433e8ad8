"""Go through the plan: all peers prepare a case and are checked, then they take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bncore.programs.bench import limit, machine, peers
from bncore.programs.bench.cases import Case
from bncore.programs.bench.host import Failed, Remote, Team
from bncore.programs.bench.plan import Options, groups
from bncore.programs.bench.results import Results, Row, timed
from bncore.programs.bench.worker import STREAMS

# Called before each case with the number of cases, the number that are done, and the next case.
Progress = Callable[[int, int, Case], None]


def run(
    options: Options,
    progress: Progress = lambda total, done, case: None,
    make: Callable[[str, int], Any] | None = None,
) -> Results:
    """Measure everything that the options select; Ctrl-C ends it early."""
    found = machine.caches()
    plain_options = {name: _plain(value) for name, value in asdict(options).items()}
    results = Results(machine.facts(options.peers), machine.plain(found), plain_options)
    results.absent = _absent((peers.OWN, *options.peers))
    if options.other_torch and peers.OTHER_PYTHON not in results.absent:
        found_there = machine.version_elsewhere("torch", options.other_torch)
        results.machine[peers.PEERS[peers.OTHER_PYTHON].name] = found_there
    planned = list(groups(options))
    start = make or starter(options.other_torch)
    teams = {threads: Team(threads, start) for threads in options.threads}
    cache = machine.cache_share(2, found)
    before = None
    try:
        for done, (case, keys) in enumerate(planned):
            progress(len(planned), done, case)
            if before is not None and (case.place, case.threads) != (before.place, before.threads):
                teams[before.threads].release()
            before = case
            present = [key for key in keys if key not in results.absent]
            results.rows += measure(teams[case.threads], case, present, options.repeats, cache)
    except KeyboardInterrupt:  # return the rows that were measured until now
        results.options["interrupted"] = True
    finally:
        for team in teams.values():
            team.close()
    return results


def starter(other_torch: Path | None) -> Callable[[str, int], Remote]:
    """Make the function that starts a worker, one of them under another interpreter."""

    def start(key: str, threads: int) -> Remote:
        return Remote(key, threads, other_torch if key == peers.OTHER_PYTHON else None)

    return start


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | list | tuple) or value is None else str(value)


def _absent(keys: tuple[str, ...]) -> dict[str, str]:
    """Return the peers that cannot run here because a package is missing."""
    missing = {}
    for key in keys:
        try:
            peers.installed(key)
        except peers.Unavailable as reason:
            missing[key] = str(reason)
    return missing


def measure(team: Team, case: Case, keys: list[str], repeats: int, cache: int) -> Iterator[Row]:
    """Measure one case; return rows in the order of the keys."""
    prepared = team.prepare([STREAMS, *keys], case)
    ready = [key for key, outcome in prepared.items() if isinstance(outcome, float)]
    taken = team.take_turns(ready, repeats)
    if STREAMS in taken:
        read, copy = (sorted(times)[len(times) // 2] for times in zip(*taken[STREAMS], strict=True))
        needed = limit.passes(case, cache).seconds(read, copy)
        known = {"read": read, "copy": copy, "limit": needed}
    else:
        known = {}
    for key in keys:
        name, outcome = peers.PEERS[key].name, prepared[key]
        if isinstance(outcome, Failed):
            yield Row(case, name, refused=str(outcome))
        elif key in taken:
            yield timed(case, name, taken[key], ulp=outcome, **known)
        elif outcome is not None:
            yield Row(case, name, refused="it failed while it was timed")
