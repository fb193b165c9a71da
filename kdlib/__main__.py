"""``python -m kdlib``: the command line, see :mod:`kdlib.cli`."""

import sys

try:
    from kdlib.cli import main

    main()
except KeyboardInterrupt:  # while it starts
    sys.exit(130)
