"""`python -m moxserve.probe FOLDER`: the process that a probe runs in; see `moxserve.probe`."""

from __future__ import annotations

import sys

from moxserve.probe.child import main

if __name__ == "__main__":
    main(sys.argv[1])
