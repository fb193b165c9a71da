"""``python -m kdlib``: the command line, see :mod:`kdlib.cli`."""

from kdlib.cli import main

main()
