"""`python -m paliglass` is the `paliglass` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line; an interrupt while its modules load is one line too."""
    # GNU's OpenMP, torch's on Linux, spins for milliseconds before its threads sleep, on a core
    # that compiled functions or another program may need. It reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        from paliglass.cli import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
