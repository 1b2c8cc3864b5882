"""`python -m paliglass` is the `paliglass` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; an interrupt while its modules load is one line too."""
    try:
        from paliglass.cli import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
