"""environment.yml in, the requirements of `make test-official` out, with a comment for every line
that is not the same.

Two things differ: the index of CUDA 11.8 wheels is not asked, so torch is the same version in
whatever build pip's own index has (PyPI: CUDA 12.6; none of the tests needs a GPU), and
spconv-cu118, which cannot be loaded without CUDA 11.8, is left out.
"""

import re
import sys
from pathlib import Path


def requirements(environment: str) -> list[str]:
    """Return the lines of a requirements file from the text of an environment.yml."""
    pip = environment.split("- pip:", 1)[1]
    found = []
    for line in re.findall(r"^ +- (.+)$", pip, flags=re.MULTILINE):
        wanted = re.sub(r"\s+#.*$", "", line).strip()
        if wanted.startswith("--extra-index-url") or wanted.startswith("spconv-"):
            found.append(f"# left out: {wanted}")
        elif "+cu" in wanted:
            found += [f"# instead of {wanted}", wanted.partition("+cu")[0]]
        else:
            found.append(wanted)
    return found


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]).read_text())))
