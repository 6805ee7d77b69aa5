"""`quept report`: its options, and running it. Importing this loads no model library."""

from __future__ import annotations

import argparse
import json

from quept.progress import Progress
from quept.report import words

HELP = "write one HTML page about an artifact: quality, how calibration went, sizes, clip factors, recipe"
MORE = (
    "The page needs no network and no other file. With charts it has about 5 MB, nearly all of it the chart "
    "library, which is inlined once."
)


def report_parser(commands) -> None:
    """Add the subcommand to the subparsers of `quept`."""
    p = commands.add_parser(
        "report",
        help=HELP,
        description=f"{HELP[0].upper()}{HELP[1:]}. {MORE}",
        epilog="example: quept report runs/smollm2 --results results.json --out report.html",
    )
    p.set_defaults(run=run_report)
    p.add_argument("artifact", metavar="ARTIFACT_FOLDER", help="folder that `quept calibrate` wrote")
    p.add_argument("--out", required=True, metavar="FILE", help="where the page goes, like report.html")
    p.add_argument(
        "--results",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE",
        help="measured results to show too: files of `quept evaluate --export-results` or of the benchmarks "
        "quality and ablation; results of round-to-nearest on the same text become the column to compare "
        "with",
    )
    p.add_argument(
        "--with-sizes",
        action="store_true",
        help="also open the base model, to give the size of the whole model at every width",
    )
    p.add_argument("--json", action="store_true", help="also print one JSON object as the last line")


def run_report(options: argparse.Namespace) -> None:
    """Write the page; ArtifactError, ResultsError, LoadError or OSError says why it cannot be."""
    from quept.report.page import write_report

    with Progress() as progress:
        progress("reading the artifact", None)
        count = write_report(
            options.artifact, options.out, options.results, with_sizes=options.with_sizes, progress=progress
        )
    print(f"{options.out}: {words.size(count)}, one page that needs no network")
    if options.json:
        print(json.dumps({"out": str(options.out), "bytes": count}))
