"""Write constraints.txt: the versions of all packages that Reelmill runs with in this environment.

The images install exactly these: what an image runs is what was tested. Development tools are
left out; what the CUDA image and the dashboard have besides is in files of their own, and what
training needs in none, so that it does not matter whether it is installed here.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGET = Path(__file__).with_name("constraints.txt")
EXTRAS = frozenset({"slurm", "kubernetes", "sites"})
HEAD = "# The packages of the images, as they are tested together. Written by `make constraints`.\n"


def needed_by(name: str, extras: frozenset[str]) -> dict[str, str]:
    """The versions of all installed packages that ``name`` with these extras needs."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(name, extras)]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        for text in distribution(one[0]).requires or ():
            needed = Requirement(text)
            if needed.marker and not any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *one[1])
            ):
                continue
            key = canonicalize_name(needed.name)
            try:
                found[key] = distribution(key).version
            except PackageNotFoundError:
                continue
            waiting.append((key, frozenset(needed.extras)))
    return found


def main() -> None:
    found = needed_by("reelmill", EXTRAS)
    found.pop("reelmill", None)
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))
    TARGET.write_text(HEAD + pins, encoding="utf-8")


if __name__ == "__main__":
    main()
