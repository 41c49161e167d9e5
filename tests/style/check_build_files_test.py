#!/usr/bin/env python3
"""check_build_files.py on small files, right and wrong."""

import textwrap
import unittest

from check_build_files import check, fix, sort_key

GOOD = '''\
"""Describes the package."""

load("//bazel:cc.bzl", "sy_cc_library")
load("//bazel:cuda.bzl", "CUDA_DEPS")

# A comment of the package.
package(default_visibility = ["//visibility:private"])

_MORE = [
    "z",
    "a",
]

# A comment by itself.

# The library.
sy_cc_library(
    name = "library",
    srcs = ["library.cc"] + CUDA_DEPS(["gpu.cc"]),
    hdrs = glob(
        [
            "*.h",
        ],
        exclude = ["private.h"],
    ),
    cmd = """
  echo  # of a string


  echo
""",
    stamp = select({
        "//bazel:stamp": True,
        "//conditions:default": False,
    }),
    deps = [
        "file.cc",
        ":one",
        ":two",
        "//base/tensor",
        "//base/tensor:convert",
        "//moe/link:step_socket",
        "//moe/link/more:socket",
        "@system//:absl",
    ] + CUDA_DEPS([
        "//moe/gpu:memory",
    ]),
)

[sh_test(
    name = name,
    srcs = ["run.sh"],
) for name in [
    "b_test",
    "a_test",
]]
'''


def messages(text, path="server/BUILD"):
    return [f"{finding.line}: {finding.message}" for finding in check(path, textwrap.dedent(text))]


class CheckBuildFilesTest(unittest.TestCase):
    def test_a_good_file_has_no_findings(self):
        self.assertEqual(messages(GOOD), [])
        self.assertEqual(fix("server/BUILD", GOOD), GOOD)

    def test_labels_are_sorted_by_kind_and_then_part_by_part(self):
        labels = ["a.cc", "a_b.cc", ":a", "//a:b", "//a/b", "//a/b:c", "@a//:b"]
        self.assertEqual(sorted(reversed(labels), key=sort_key), labels)

    def test_load_comes_first(self):
        self.assertEqual(messages('package()\n\nload("a", "b")\n'), ["3: load() belongs at the top of the file"])

    def test_one_blank_line_between_statements(self):
        self.assertEqual(messages("a()\nb()\n"), ["2: no blank line before this statement"])
        self.assertEqual(messages("a()\n# of b\nb()\n"), ["3: no blank line before this statement"])
        self.assertEqual(messages("a()\n\n\nb()\n"), ["3: more than one blank line"])
        self.assertEqual(messages('load("a")\n\nload("b")\n'), ["3: a blank line between two load()s"])

    def test_indentation_follows_brackets(self):
        self.assertEqual(messages('a(\n  name = "b",\n)\n'), ["2: indented by 2, expected 4 spaces"])
        self.assertEqual(messages('a(\n    name = "b",\n    )\n'), ["3: indented by 4, expected 0 spaces"])
        self.assertEqual(messages('a(b([\n    "c",\n]))\n'), [])
        self.assertEqual(messages('a(\n  # of b\n    name = "b",\n)\n'), ["2: indented by 2, expected 4 spaces"])

    def test_commas_are_added(self):
        text = 'a(\n    name = "b",\n    tags = [\n        "c"  # of c\n    ]\n)\n'
        self.assertEqual(messages(text), ["4: no comma after the last element", "5: no comma after the last element"])
        self.assertEqual(fix("BUILD", text), 'a(\n    name = "b",\n    tags = [\n        "c",  # of c\n    ],\n)\n')

    def test_lists_are_sorted_and_each_label_is_there_once(self):
        text = ('a(\n    srcs = ["b.cc", "a.cc"],\n    deps = [\n        "@c",\n        ":a",\n        ":a",\n    ]'
                ' + C(["d", "c"]),\n)\n')
        self.assertEqual(messages(text), [
            '2: srcs: "b.cc" is out of order',
            '3: deps: "@c" is out of order, or listed twice',
            '7: deps: "d" is out of order',
        ])
        self.assertEqual(
            fix("BUILD", text),
            'a(\n    srcs = ["a.cc", "b.cc"],\n    deps = [\n        ":a",\n        "@c",\n    ] + C(["c", "d"]),\n)\n')

    def test_lists_with_comments_are_left_to_people(self):
        text = 'a(srcs = [\n    "b",\n    "a",  # of a\n])\n'
        self.assertEqual(messages(text), ['1: srcs: "b" is out of order'])
        self.assertEqual(fix("BUILD", text), text)
        self.assertEqual(messages('a(srcs = [\n    # do not sort\n    "b",\n    "a",\n])\n'), [])

    def test_packages_are_private(self):
        public = 'package(default_visibility = ["//visibility:public"])\n'
        self.assertEqual(messages(public), ['1: the default visibility is not ["//visibility:private"]'])
        self.assertEqual(messages(public, "base/tensor/BUILD"), [])
        self.assertEqual(messages(public, "tests/BUILD"), [])

    def test_ends_of_lines_and_files(self):
        self.assertEqual(messages("a()  \n"), ["1: white space at the end of the line"])
        self.assertEqual(messages("a()"), ["1: expected one newline at the end of the file"])
        self.assertEqual(messages("a()\n\n"), ["3: expected one newline at the end of the file"])

    def test_what_is_no_build_file_is_one_finding(self):
        self.assertEqual(len(messages("a(\n")), 1)
        self.assertEqual(messages(""), [])


if __name__ == "__main__":
    unittest.main()
