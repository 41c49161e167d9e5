#!/usr/bin/env python3
"""The includes between rooms are those of docs/architecture.md, and check_includes.py finds those that are not."""

import os
import unittest

from check_includes import check, check_tree, find_cycles, reached, read_picture, room_of

PICTURE = """\
# Architecture

| folder | contents |
|---|---|
| `base/` | Common parts. |
| `moe/weights` | Weights. |
| `moe/gating` | Gates. |
| `proto/` | Messages. |
| `server/` | The front. |
| `deploy/` | No C++. |

| folder of `server/` | contents |
|---|---|
| `models/` | Models. |
| `front/` | All of it. |

| room | may include |
|---|---|
| `base` | nothing else |
| `proto` | |
| `moe/weights` | |
| `moe/gating` | `moe/weights` |
| `server/models` | every room of `moe` above |
| `server/front` | gRPC, `server/models` |
| `server/main.cc` | gRPC, every room above |
"""

FILES = {
    "base/a.h": '#include <vector>\n#include "absl/status/status.h"\n',
    "moe/gating/cpu/gate.cc": '#include "base/a.h"\n#include "moe/gating/gate.h"\n#include "moe/weights/spec.h"\n',
    "server/models/model.h": '#include "moe/gating/gate.h"\n',
    "server/front/front.cc": '#include <grpcpp/grpcpp.h>\n#include "server/models/model.h"\n',
    "server/front/front_test.cc": '#include "moe/weights/spec.h"\n#include "proto/messages.pb.h"\n',
    "server/main.cc": '#include "server/front/front.h"\n',
}


def findings(picture=PICTURE, **changes):
    """The findings in the tree with other files. A name's "__" stands for "/" and its "_h" or "_cc" for the end."""
    files = dict(FILES)
    for name, text in changes.items():
        stem, end = name.replace("__", "/").rsplit("_", 1)
        files[f"{stem}.{end}"] = text
    return check(picture, files)


class CheckIncludesTest(unittest.TestCase):
    def test_the_tree_is_as_the_picture_says(self):
        here = os.path.dirname(os.path.realpath(__file__))
        self.assertEqual(check_tree(os.path.dirname(os.path.dirname(here))), [])

    def test_a_good_tree_has_no_findings(self):
        self.assertEqual(findings(), [])

    def test_a_room_that_is_not_listed_is_found(self):
        self.assertEqual(findings(moe__gating__gate_cc='\n  # include "server/models/model.h"\n'), [
            "moe/gating/gate.cc:2: moe/gating may not include server/models: server/models/model.h",
            "rooms include each other in a cycle: moe/gating -> server/models -> moe/gating",
        ])
        self.assertEqual(findings(base__b_h='#include "proto/messages.pb.h"'),
                         ["base/b.h:1: base may not include proto: proto/messages.pb.h"])

    def test_comments_are_not_includes(self):
        self.assertEqual(findings(base__b_h='// #include "proto/messages.pb.h"'), [])

    def test_grpc_is_only_where_it_is_listed(self):
        self.assertEqual(findings(moe__weights__a_cc="#include <grpcpp/server.h>"),
                         ["moe/weights/a.cc:1: moe/weights may not include gRPC: grpcpp/server.h"])
        # Not even in tests of a room, nor through a room that may.
        self.assertEqual(findings(server__models__a_test_cc='#include "grpcpp/server.h"'),
                         ["server/models/a_test.cc:1: server/models may not include gRPC: grpcpp/server.h"])

    def test_tests_may_include_what_their_room_reaches(self):
        self.assertEqual(findings(server__front__front_cc='#include "moe/weights/spec.h"'),
                         ["server/front/front.cc:1: server/front may not include moe/weights: moe/weights/spec.h"])
        for name in ("front_test_cc", "testing_h", "load_benchmark_cc", "fake_host_h"):
            self.assertEqual(findings(**{"server__front__" + name: '#include "moe/weights/spec.h"'}), [])
        self.assertEqual(findings(moe__gating__gate_test_cc='#include "server/models/model.h"'),
                         ["moe/gating/gate_test.cc:1: moe/gating may not include server/models: server/models/model.h"])

    def test_rows_list_only_rooms_above(self):
        picture = PICTURE.replace("| `moe/weights` | |", "| `moe/weights` | `moe/gating`, `moe/other` |")
        self.assertEqual(findings(picture), [
            "docs/architecture.md: moe/weights lists moe/gating, which is not a room above it",
            "docs/architecture.md: moe/weights lists moe/other, which is not a room above it",
        ])

    def test_every_file_is_in_a_room(self):
        self.assertEqual(findings(server__other_cc=""), ["server/other.cc: is in no room of docs/architecture.md"])
        self.assertEqual(findings(server__front__a_cc='#include "server/other.h"'),
                         ["server/front/a.cc:1: server/other.h is in no room of docs/architecture.md"])

    def test_the_tables_name_the_same_rooms(self):
        without_folders = PICTURE.replace("| `models/` | Models. |\n", "").replace("| `server/` | The front. |\n", "")
        self.assertEqual(findings(without_folders),
                         ["docs/architecture.md: the room server/models is in no folder of the tables of \"contents\"",
                          "docs/architecture.md: the room server/main.cc is in no folder of the tables of \"contents\""])
        without_row = PICTURE.replace("| `moe/gating` | `moe/weights` |\n", "")
        self.assertIn("docs/architecture.md: the folder moe/gating has no row in the table \"room | may include\"",
                      findings(without_row))
        self.assertIn("docs/architecture.md: there is no table \"room | may include\"", check("", {}))

    def test_cells_may_name_every_room_above(self):
        rooms = read_picture(PICTURE).rooms
        self.assertEqual(rooms["server/models"], {"base", "moe/weights", "moe/gating"})
        self.assertEqual(rooms["server/main.cc"], set(rooms) - {"server/main.cc"} | {"gRPC"})
        self.assertEqual(reached("server/front", rooms), {"base", "gRPC", "moe/gating", "moe/weights", "server/models"})
        self.assertEqual(reached("server/models", rooms), {"base", "moe/gating", "moe/weights"})

    def test_the_innermost_room_counts(self):
        self.assertEqual(room_of("moe/gating/cpu/gate.h", {"moe": set(), "moe/gating": set()}), "moe/gating")
        self.assertEqual(room_of("server/main.cc", {"server/main.cc": set()}), "server/main.cc")
        self.assertIsNone(room_of("absl/status/status.h", {"base": set()}))

    def test_cycles_of_any_length_are_found(self):
        self.assertEqual(find_cycles({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}}), [])
        self.assertEqual(find_cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}), [["a", "b", "c", "a"]])


if __name__ == "__main__":
    unittest.main()
