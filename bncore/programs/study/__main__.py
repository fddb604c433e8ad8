"""Run the study: ``python -m bncore study``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bncore.extras import pip_install

try:
    import matplotlib  # noqa: F401
    import rich  # noqa: F401
    import scipy  # noqa: F401
    import sklearn  # noqa: F401
    import threadpoolctl  # noqa: F401
except ImportError as error:
    sys.exit(
        f"The study needs matplotlib, rich and scikit-learn ({error}): {pip_install('study')} "
        "installs them, and `make study` in a checkout does all of it"
    )

from rich.markdown import Markdown

from bncore.programs.study import page
from bncore.programs.study.execute import keep, progress_bar, read, run
from bncore.programs.study.plan import PLANS
from bncore.programs.terminal import console, json_text


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, train everything, show the results, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m bncore study",
        description="What batch norm does to training, measured on handwritten digits.",
    )
    parser.add_argument("--plan", choices=list(PLANS), default="full", help="how much is trained")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write README.md and pictures")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what the trainings gave")
    parser.add_argument(
        "--from", type=Path, dest="kept", metavar="FILE", help="train nothing, read such a file"
    )
    parser.add_argument("--workers", type=int, help="processes; default: as many as processors")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: expected 1 or more, got {options.workers}")
    plan = PLANS[options.plan]
    settings = page.settings(plan)
    if options.kept:
        results = read(options.kept)
        missing = len(set(settings) - results.keys())
        if missing:
            parser.error(f"--from: expected all trainings of the {plan.name} plan, {missing} miss")
    else:
        with progress_bar(settings) as advance:
            results = run(settings, workers=options.workers, advance=advance)
    if options.keep:
        keep(results, options.keep)
    claims = page.claims(results, plan)
    if options.write:
        page.write(results, plan, options.write)
    if options.json:
        found = [
            {"claim": c.name, "verdict": c.verdict, "says": c.says, "sentence": c.sentence()}
            for c in claims
        ]
        print(json_text({"plan": plan.name, "trainings": len(results), "claims": found}))
        return
    screen = console()
    screen.print(
        f"What batch norm does in {len(results):,} trainings on handwritten digits "
        f"({len(plan.seeds)} seeds, {plan.name} plan). Means with batch norm against without:\n"
    )
    for claim in claims:
        screen.print(Markdown(f"*{claim.name}.* {claim.sentence()}"), "")
    if options.write:
        screen.print(
            f"Written: {options.write / 'README.md'}", soft_wrap=True
        )  # a path is one line


if __name__ == "__main__":
    main()
