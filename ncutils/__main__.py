"""The command line of ncutils: a module a command, with ``add_arguments(parser)`` and ``main(args)``."""

import argparse
import sys

from ncutils import fetch

COMMANDS = {"data": (fetch, "fetch full data sets")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ncutils", description=__doc__.split(":")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help) in COMMANDS.items():
        command = commands.add_parser(name, help=help, description=module.__doc__.split("\n")[0])
        module.add_arguments(command)
        command.set_defaults(run=module.main)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
