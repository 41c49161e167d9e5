#!/usr/bin/env python3
"""changed_sources.py on a small tree, and in a small repository."""

import os
import subprocess
import tempfile
import unittest

import changed_sources

TREE = {
    "base/a.cc": "",
    "base/a_test.cc": '#include "base/a.h"\n',
    "base/b.cc": "",
    "http/c_test.cc": '#include "http/c.h"\n',
    "http/d_benchmark.cc": "",
}


def select(*changed):
    return changed_sources.select(list(changed), sorted(TREE), TREE.get)


class SelectTest(unittest.TestCase):
    def test_sources_are_checked_themselves(self):
        self.assertEqual(select("README.md", "base/b.cc", "http/c_test.cc"), ["base/b.cc", "http/c_test.cc"])

    def test_a_header_asks_for_the_library_of_its_folder(self):
        self.assertEqual(select("base/a.h"), ["base/a.cc", "base/b.cc"])

    def test_without_a_library_the_sources_that_include_it_are_checked(self):
        self.assertEqual(select("http/c.h"), ["http/c_test.cc"])
        self.assertEqual(select("cli/none.h"), [])

    def test_changed_sources_come_first_and_each_is_there_once(self):
        self.assertEqual(select("base/a.h", "base/b.cc"), ["base/b.cc", "base/a.cc"])


class ChangeTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder.name)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments):
        names = ["-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run(["git", *names, *arguments], check=True, capture_output=True)

    def commit(self, name):
        self.write(name)
        self.git("add", name)
        self.git("commit", "--quiet", "--message=" + name)

    def write(self, name):
        with open(name, "w", encoding="utf-8") as file:
            file.write(name)

    def changed(self):
        return changed_sources.changed_files(changed_sources.base_commit())

    def test_without_upstream_the_last_commit_counts_and_what_is_uncommitted(self):
        self.commit("one")
        self.assertIsNone(changed_sources.base_commit())
        self.commit("two")
        self.commit("three")
        self.write("new")
        self.assertEqual(self.changed(), ["new", "three"])
        os.remove("three")
        self.assertEqual(self.changed(), ["new"])

    def test_with_upstream_all_commits_of_the_branch_count(self):
        self.commit("one")
        self.commit("two")
        self.git("checkout", "--quiet", "-b", "branch", "--track", "main")
        self.assertEqual(self.changed(), ["two"])  # nothing of its own
        self.commit("three")
        self.commit("four")
        self.assertEqual(self.changed(), ["four", "three"])


if __name__ == "__main__":
    unittest.main()
