#!/usr/bin/env python3
"""bazel/workspace_status.sh in a repository of its own: a clean tree, a changed one, and a folder without git."""

import os
import subprocess
import tempfile
import unittest

SCRIPT = os.path.abspath("bazel/workspace_status.sh")
KEY = "STABLE_SWITCHYARD_COMMIT "


class WorkspaceStatusTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        # Git looks no further up than here, whatever the folder for temporary files lies in.
        self.environment = dict(os.environ, GIT_CEILING_DIRECTORIES=os.path.dirname(self.folder), HOME=self.folder)

    def run_here(self, *command):
        return subprocess.run(command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True,
                              check=True).stdout

    def git(self, *arguments):
        return self.run_here("git", "-c", "user.name=test", "-c", "user.email=test", *arguments).strip()

    def commit(self):
        printed = self.run_here(SCRIPT)
        self.assertTrue(printed.startswith(KEY), printed)
        return printed[len(KEY):].strip()

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w", encoding="utf-8") as file:
            file.write(text)

    def make_repository(self):
        self.git("init", "--quiet")
        self.write("file", "one\n")
        self.git("add", "file")
        self.git("commit", "--quiet", "--message=first")
        return self.git("rev-parse", "HEAD")

    def test_a_clean_tree_has_the_name_of_its_commit(self):
        head = self.make_repository()
        self.assertTrue(len(self.commit()) >= 7 and head.startswith(self.commit()), self.commit())

    def test_a_changed_file_makes_the_tree_dirty(self):
        self.make_repository()
        clean = self.commit()
        self.write("file", "two\n")
        self.assertEqual(self.commit(), clean + "+dirty")

    def test_a_new_file_makes_the_tree_dirty_unless_it_is_ignored(self):
        self.make_repository()
        clean = self.commit()
        self.write("more", "")
        self.assertEqual(self.commit(), clean + "+dirty")
        self.write(".git/info/exclude", "more\n")
        self.assertEqual(self.commit(), clean)

    def test_without_a_repository_the_commit_is_unknown(self):
        self.assertEqual(self.commit(), "unknown")


if __name__ == "__main__":
    unittest.main()
