#!/usr/bin/env python3
"""Prints the C++ sources that a change asks clang-tidy to check, one a line.

    tests/style/changed_sources.py

A change is every difference from the commit where this branch left its upstream branch, uncommitted and new files
included. Without an upstream branch, or without changes of one's own, it is every difference from the commit before.
Printed are

- first the sources that changed themselves;
- then, for each header that changed, the sources of its folder's library, or, where it has none, the sources of the
  folder that include the header.

Exits with 1, and the reason on stderr, where git does not know.
"""

import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
NOT_IN_LIBRARY = re.compile(r"(_test|benchmark)\.cc$")


def git(*arguments):
    """The output of git, or None where it fails."""
    done = subprocess.run(["git", "-c", "safe.directory=*", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def base_commit():
    """The commit with which to compare, or None."""
    head = git("rev-parse", "HEAD")
    base = git("merge-base", "HEAD", "@{upstream}")
    if base is None or base == head:
        base = git("rev-parse", "--verify", "HEAD~1")
    return base.strip() if base else None


def changed_files(base):
    """Paths that differ from a commit in the working tree, without those that are gone."""
    changed = git("diff", "--name-only", "-z", "--diff-filter=d", base) or ""
    new = git("ls-files", "-z", "--others", "--exclude-standard") or ""
    return sorted(path for path in set((changed + new).split("\0")) if path)


def sources_for_header(header, sources, read):
    beside = [source for source in sources if os.path.dirname(source) == os.path.dirname(header)]
    library = [source for source in beside if not NOT_IN_LIBRARY.search(source)]
    return library or [source for source in beside if f'#include "{header}"' in read(source)]


def select(changed, sources, read):
    """The paths to check, out of `sources`, the paths of all. `read(path)` is a source's text."""
    chosen = {path: None for path in changed if path in sources}  # in order, each once
    for header in changed:
        if header.endswith(".h"):
            chosen.update(dict.fromkeys(sources_for_header(header, sources, read)))
    return list(chosen)


def read_file(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def main():
    os.chdir(os.path.dirname(os.path.dirname(HERE)))
    base = base_commit()
    if base is None:
        print("there is no earlier commit to compare with", file=sys.stderr)
        return 1
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.cc") or ""
    sources = sorted(path for path in listed.split("\0") if path)
    for path in select(changed_files(base), sources, read_file):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
