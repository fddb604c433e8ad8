"""``python -m bncore <command>``: bench, demo, study, or config."""

from __future__ import annotations

import sys

import bncore
from bncore.c_library import compiler_flags

USAGE = """usage: python -m bncore <command>

  bench    measure bncore and its peers; --help for its options
  demo     the main job on real data
  study    what batch norm does to training, measured
  config   what bncore runs on; --cflags, --libs [--static], --prefix, --version: for a compiler"""

CONFIG_USAGE = """usage: python -m bncore config [options]

Without an option, it shows versions, backends, instruction set and threads.

  --cflags   the compiler's options for bncore.h
  --libs     the linker's options for the shared C library
  --static   the linker's options for the static C library, with or without --libs
  --prefix   the directory for CMake's CMAKE_PREFIX_PATH
  --version  the version of bncore"""


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
        case ["config", *options] if {"--help", "-h"} & set(options):
            print(CONFIG_USAGE)
        case ["config", *options]:
            try:
                print(compiler_flags(options))
            except (RuntimeError, ValueError) as error:
                sys.exit(str(error))
        case ["--help" | "-h"]:
            print(USAGE)
        case [unknown, *_]:
            sys.exit(f"unknown command {unknown}\n{USAGE}")
        case _:
            sys.exit(USAGE)


if __name__ == "__main__":
    main(sys.argv[1:])
