#!/usr/bin/env python3
"""Checks the includes between rooms against the table "room | may include" of docs/architecture.md.

    tests/style/check_includes.py [ROOT]

A room is a folder with all that is below it, or a single file. It checks that

- a file includes only its own room, base, and the rooms that the table lists for it;
- a file includes gRPC's headers only where the table lists gRPC;
- a room's row lists only rooms above it, so that the table has no cycle; and no rooms include each other in a cycle;
- every C++ and CUDA file lies in a room of the table, and every folder of the tables of "contents" that has such
  files has a room.

Files that only tests and benchmarks use may also include proto, and every room that their own room reaches over the
rooms it may include. They are left out of the search for cycles. Exits with 1 when something is found.
"""

import os
import re
import subprocess
import sys
from collections import namedtuple

PICTURE = "docs/architecture.md"
SOURCES = (".h", ".cc", ".cu", ".cuh")
GRPC = "gRPC"
EVERYWHERE = "base"  # every room may include it
FOR_TESTS = "proto"  # every file of a test may include it

# Files that only tests and benchmarks use.
TEST_FILE = re.compile(r"(_test\.(cc|cu)|benchmark\.(cc|cu)|/testing\.(h|cc)|/fake_[^/]*)$")

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
QUOTED = re.compile(r"`([^`]+)`")
EVERY = re.compile(r"every room (?:of `([^`]+)` )?above")

Picture = namedtuple("Picture", "rooms folders findings")  # {room: set of rooms and GRPC}, in order; folders; texts
Include = namedtuple("Include", "path line name is_system")


def rows_of(text, first_cells):
    """The cells of the rows of every table whose head begins with one of `first_cells`."""
    lines = iter(text.split("\n"))
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|") or cells[0] not in first_cells:
            continue
        next(lines, None)  # |---|---|
        for row in lines:
            if not row.startswith("|"):
                break
            yield cells[0], [cell.strip() for cell in row.strip()[1:-1].split("|")]


def rooms_of_cell(cell, above):
    """The rooms that one cell lists. `above` are those of the rows above it."""
    named = set(QUOTED.findall(EVERY.sub("", cell)))
    for folder in EVERY.findall(cell):
        named.update(room for room in above if not folder or room.startswith(folder + "/"))
    if re.search(rf"\b{GRPC}\b", cell):
        named.add(GRPC)
    return named


def read_picture(text):
    """Reads the document: which rooms there are and what each may include."""
    rooms, findings = {}, []
    for _, (name, cell) in rows_of(text, ("room",)):
        room = name.strip("`")
        listed = rooms_of_cell(cell, list(rooms))
        findings += [f"{PICTURE}: {room} lists {other}, which is not a room above it"
                     for other in sorted(listed - set(rooms) - {GRPC})]
        rooms[room] = listed | ({EVERYWHERE} if room != EVERYWHERE else set())
    if not rooms:
        findings.append(f"{PICTURE}: there is no table \"room | may include\"")

    folders = []
    for head, cells in rows_of(text, ("folder", "folder of `server/`")):
        folders.append(("server/" if "server" in head else "") + cells[0].strip("`").rstrip("/"))
    return Picture(rooms, folders, findings)


def room_of(path, rooms):
    """The innermost room that has the path, or None."""
    while path:
        if path in rooms:
            return path
        path = os.path.dirname(path)
    return None


def is_for_tests(path):
    return TEST_FILE.search("/" + path) is not None


def reached(room, rooms):
    """The rooms that a room includes, directly or over others. gRPC counts only where the room itself lists it."""
    found, left = set(), {room}
    while left:
        more = rooms.get(left.pop(), set()) - {GRPC} - found
        found |= more
        left |= more
    return found | (rooms[room] & {GRPC})


def is_grpc(name):
    return name.startswith(("grpc/", "grpc++/", "grpcpp/"))


def check_include(include, rooms):
    """A text when a file may not include what it includes, else None. Headers of other projects are not checked."""
    room = room_of(include.path, rooms)
    allowed = rooms[room]
    if is_for_tests(include.path):
        allowed = reached(room, rooms) | {FOR_TESTS}
    place = f"{include.path}:{include.line}: {room} may not include"
    if is_grpc(include.name):
        return None if GRPC in allowed else f"{place} {GRPC}: {include.name}"
    if include.is_system:
        return None
    target = room_of(include.name, rooms)
    if target is None:
        ours = include.name.split("/")[0] in {each.split("/")[0] for each in rooms}
        return f"{include.path}:{include.line}: {include.name} is in no room of {PICTURE}" if ours else None
    if target == room or target in allowed:
        return None
    return f"{place} {target}: {include.name}"


def find_cycles(edges):
    """Cycles of a graph {node: nodes}: for each edge that closes one, the nodes along it."""
    cycles, done = [], set()

    def visit(node, way):
        if node in way:
            cycles.append(way[way.index(node):] + [node])
        elif node not in done:
            for other in sorted(edges.get(node, ())):
                visit(other, way + [node])
            done.add(node)

    for node in sorted(edges):
        visit(node, [])
    return cycles


def edges_of(includes, rooms):
    """{room: rooms that it includes}, without what only tests use."""
    edges = {}
    for include in includes:
        room, target = room_of(include.path, rooms), room_of(include.name, rooms)
        if not include.is_system and target not in (None, room) and not is_for_tests(include.path):
            edges.setdefault(room, set()).add(target)
    return edges


def check(picture_text, files):
    """The findings of a tree, as texts. `files` is {path: text} of its C++ and CUDA files."""
    rooms, folders, findings = read_picture(picture_text)
    includes = []
    for path, text in sorted(files.items()):
        if room_of(path, rooms) is None:
            findings.append(f"{path}: is in no room of {PICTURE}")
            continue
        for number, line in enumerate(text.split("\n"), 1):
            match = INCLUDE.match(line)
            if match:
                includes.append(Include(path, number, match[2], match[1] == "<"))
    findings += [finding for include in includes if (finding := check_include(include, rooms))]
    findings += ["rooms include each other in a cycle: " + " -> ".join(cycle)
                 for cycle in find_cycles(edges_of(includes, rooms))]

    for room in rooms:
        if not any((room + "/").startswith(folder + "/") for folder in folders):
            findings.append(f"{PICTURE}: the room {room} is in no folder of the tables of \"contents\"")
    for folder in folders:
        has_sources = any(path.startswith(folder + "/") for path in files)
        if has_sources and not any((room + "/").startswith(folder + "/") for room in rooms):
            findings.append(f"{PICTURE}: the folder {folder} has no row in the table \"room | may include\"")
    return findings


def read_tree(root):
    """{path: text} of the C++ and CUDA files that git knows or would add, or of all there are without git."""
    command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others",
               "--exclude-standard", "--", *("*" + end for end in SOURCES)]
    try:
        paths = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        paths = []
        for folder, names, files in os.walk(root):
            names[:] = [name for name in names if name != ".git" and not name.startswith("bazel-")]
            paths += [os.path.relpath(os.path.join(folder, name), root) for name in files if name.endswith(SOURCES)]
    tree = {}
    for path in filter(None, paths):
        if os.path.exists(os.path.join(root, path)):
            with open(os.path.join(root, path), encoding="utf-8") as file:
                tree[path] = file.read()
    return tree


def check_tree(root):
    with open(os.path.join(root, PICTURE), encoding="utf-8") as file:
        return check(file.read(), read_tree(root))


def main():
    # The links through which Bazel runs it lead to the tree.
    here = os.path.dirname(os.path.realpath(__file__))
    findings = check_tree(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.dirname(here)))
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
