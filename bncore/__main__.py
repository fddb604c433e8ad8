"""``python -m bncore <command>``: bench, demo, study, or config."""

from __future__ import annotations

import json
import sys

import bncore
from bncore.c_library import compiler_flags

USAGE = """usage: python -m bncore <command> [options]

  bench      measure bncore and its peers; --quick: two minutes, --busy N
             beside busy processes
  demo       accuracy, speed and a small network on real data; --quick: seconds
  study      what batch norm does to training, measured; --plan small: a minute
  config     what bncore runs on, and options for a compiler: --cflags, --libs
  --version  the version of bncore
  --help     this text

Every command has --help, and --json, which prints results for programs. Tables
are as wide as the terminal, or as COLUMNS says."""

CONFIG_USAGE = """usage: python -m bncore config [options]

Without an option, it shows versions, backends, instruction set and threads.

  --cflags   the compiler's options for bncore.h
  --libs     the linker's options for the shared C library
  --static   the linker's options for the static C library; needs no --libs
  --prefix   the directory for CMake's CMAKE_PREFIX_PATH
  --version  the version of bncore
  --json     everything it shows, as JSON"""


def main(arguments: list[str]) -> None:
    """Hand over to a command."""
    match arguments:
        case ["bench", *rest]:
            from bncore.programs.bench.command import main as bench

            bench(rest)
        case ["demo", *rest]:
            from bncore.programs.demo.__main__ import main as demo

            demo(rest)
        case ["study", *rest]:
            from bncore.programs.study.__main__ import main as study

            study(rest)
        case ["config"]:
            bncore.show_config()
        case ["config", "--json"]:
            print(json.dumps(bncore.show_config(mode="dicts"), indent=1))
        case ["config", *options] if {"--help", "-h"} & set(options):
            print(CONFIG_USAGE)
        case ["config", *options]:
            try:
                print(compiler_flags(options))
            except (RuntimeError, ValueError) as error:
                sys.exit(str(error))
        case ["--help" | "-h" | "help"]:
            print(USAGE)
        case ["--version" | "-V"]:
            print(bncore.__version__)
        case [unknown, *_]:
            sys.exit(f"unknown command {unknown}\n{USAGE}")
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
