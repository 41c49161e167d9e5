#!/usr/bin/env python3
"""Checks how BUILD files are written: the part of buildifier's rules that this repository keeps, without buildifier.

    tests/style/check_build_files.py [--fix] [FILE...]

Without FILE it checks every BUILD file of the repository. It checks that

- load() comes before everything else;
- one blank line stands between statements, and none between two load()s;
- a line is indented by 4 spaces more than the line with the bracket that it is in;
- a list or a call whose closing bracket starts a line ends with a comma;
- srcs, hdrs, data and deps are sorted, each once: files, then ":x", then "//x", then "@x" (a list that has a comment
  "do not sort" is left as it is);
- no package outside base/ and tests/ has another default visibility than private.

--fix sorts lists and adds commas; a person has to do the rest. Exits with 1 when something is left.
"""

import argparse
import ast
import io
import os
import subprocess
import sys
import tokenize
from collections import namedtuple

SORTED_ATTRIBUTES = ("srcs", "hdrs", "data", "deps")
OPEN_BY_DEFAULT = ("base", "tests")  # folders whose packages may have another default visibility than private
PRIVATE = "//visibility:private"
INDENT = 4

Finding = namedtuple("Finding", "line message edit")  # edit: (begin, end, replacement) by offset in the text, or None


def sort_key(label):
    """Buildifier's order of labels: their kind, then their text, where ":" and "." separate parts."""
    kind = 3 if label.startswith("@") else 2 if label.startswith("//") else 1 if label.startswith(":") else 0
    return kind, label.replace(":", ".").split("."), label


class BuildFile:
    """One file's text, syntax tree and tokens."""

    def __init__(self, path, text):
        self.path = path
        self.text = text
        self.lines = text.split("\n")
        self.line_offsets = [0]
        for line in self.lines:
            self.line_offsets.append(self.line_offsets[-1] + len(line) + 1)
        self.statements = ast.parse(text).body
        self.tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))

    def offset(self, line, column):
        return self.line_offsets[line - 1] + column

    def offset_of_byte(self, line, column):
        """The same for a column of the syntax tree, which counts bytes."""
        return self.offset(line, len(self.lines[line - 1].encode()[:column].decode()))

    def span(self, node):
        return self.offset_of_byte(node.lineno, node.col_offset), self.offset_of_byte(
            node.end_lineno, node.end_col_offset)


def called_name(statement):
    """The function that a statement calls, or None."""
    value = getattr(statement, "value", None)
    if isinstance(statement, ast.Expr) and isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value.func.id
    return None


def check_loads(file):
    others = False
    for statement in file.statements:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if called_name(statement) != "load":
            others = others or not is_docstring
        elif others:
            yield Finding(statement.lineno, "load() belongs at the top of the file", None)


def check_blank_lines(file):
    inside = set()  # lines of statements, whose own blank lines are those of a string
    for statement in file.statements:
        inside.update(range(statement.lineno, statement.end_lineno + 1))
    for number in range(2, len(file.lines)):
        if not file.lines[number - 2] and not file.lines[number - 1] and not {number - 1, number} & inside:
            yield Finding(number, "more than one blank line", None)
    for before, after in zip(file.statements, file.statements[1:]):
        between = file.lines[before.end_lineno:after.lineno - 1]
        loads = called_name(before) == called_name(after) == "load"
        if loads and "" in between:
            yield Finding(after.lineno, "a blank line between two load()s", None)
        elif not loads and "" not in between:
            yield Finding(after.lineno, "no blank line before this statement", None)


def indent_of(line):
    return len(line) - len(line.lstrip(" "))


def check_indentation(file):
    brackets = []  # indents of the lines that opened those that are open
    last_line = 0
    for token in file.tokens:
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        line, column = token.start
        starts_line = line != last_line and not file.lines[line - 1][:column].strip()
        last_line = token.end[0]
        closes = token.type == tokenize.OP and token.string in ")]}"
        if starts_line:
            expected = 0 if not brackets else brackets[-1] if closes else brackets[-1] + INDENT
            if column != expected or "\t" in file.lines[line - 1][:column]:
                yield Finding(line, f"indented by {column}, expected {expected} spaces", None)
        if closes:
            brackets.pop()
        elif token.type == tokenize.OP and token.string in "([{":
            brackets.append(indent_of(file.lines[line - 1]))


def takes_trailing_comma(tokens, opening, closing):
    """Whether a comma may stand before tokens[closing]: not in a comprehension, an index or mere parentheses."""
    before = tokens[opening - 1] if opening else None
    follows_value = before is not None and (before.type in (tokenize.NAME, tokenize.STRING) or before.string in ")]")
    follows_value = follows_value and before.string not in ("in", "if", "else", "and", "or", "not", "for")
    kind = tokens[opening].string
    if (kind == "(" and not follows_value) or (kind == "[" and follows_value):
        return False
    depth = 0
    for token in tokens[opening + 1:closing]:
        if token.type == tokenize.OP and token.string in "([{":
            depth += 1
        elif token.type == tokenize.OP and token.string in ")]}":
            depth -= 1
        elif depth == 0 and token.string == "for":
            return False
    return True


def check_trailing_commas(file):
    ignored = (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
    tokens = [token for token in file.tokens if token.type not in ignored]
    openings = []
    for index, token in enumerate(tokens):
        if token.type != tokenize.OP:
            continue
        if token.string in "([{":
            openings.append(index)
        elif token.string in ")]}":
            opening = openings.pop()
            last = tokens[index - 1]
            own_line = last.end[0] < token.start[0] and opening != index - 1
            if own_line and last.string != "," and takes_trailing_comma(tokens, opening, index):
                end = file.offset(*last.end)
                yield Finding(last.end[0], "no comma after the last element", (end, end, ","))


def check_sorted(file):
    for statement in file.statements:
        for call in ast.walk(statement):
            for keyword in call.keywords if isinstance(call, ast.Call) else ():
                if keyword.arg in SORTED_ATTRIBUTES:
                    yield from check_sorted_value(file, keyword.arg, keyword.value)


def check_sorted_value(file, attribute, value):
    """Every list of plain strings that is in the value: lists may be added up, or be arguments of CUDA_DEPS()."""
    for node in ast.walk(value):
        if not isinstance(node, ast.List) or not all(
                isinstance(element, ast.Constant) and isinstance(element.value, str) for element in node.elts):
            continue
        labels = [element.value for element in node.elts]
        wanted = sorted(set(labels), key=sort_key)
        begin, end = file.span(node)
        comments = [token.string for token in file.tokens
                    if token.type == tokenize.COMMENT and begin <= file.offset(*token.start) < end]
        if labels == wanted or any("do not sort" in comment for comment in comments):
            continue
        wrong = next((label for label, other in zip(labels, wanted) if label != other), labels[-1])
        again = ", or listed twice" if len(wanted) < len(labels) else ""
        # A comment belongs to an element, and only a person knows to which.
        edit = None if comments else (begin, end, written_list(file, node, wanted))
        yield Finding(node.lineno, f"{attribute}: \"{wrong}\" is out of order{again}", edit)


def written_list(file, node, labels):
    quoted = [f'"{label}"' for label in labels]
    if node.lineno == node.end_lineno:
        return "[" + ", ".join(quoted) + "]"
    indent = " " * indent_of(file.lines[node.lineno - 1])
    return "[\n" + "".join(f"{indent}{' ' * INDENT}{label},\n" for label in quoted) + indent + "]"


def check_visibility(file):
    if os.path.normpath(file.path).split(os.sep)[0] in OPEN_BY_DEFAULT:
        return
    for statement in file.statements:
        if called_name(statement) != "package":
            continue
        for keyword in statement.value.keywords:
            if keyword.arg == "default_visibility" and ast.unparse(keyword.value) != f"['{PRIVATE}']":
                yield Finding(keyword.value.lineno, f"the default visibility is not [\"{PRIVATE}\"]", None)


def check_ends(file):
    for number, line in enumerate(file.lines, 1):
        if line != line.rstrip():
            yield Finding(number, "white space at the end of the line", None)
    if file.text and (not file.text.endswith("\n") or file.text.endswith("\n\n")):
        yield Finding(len(file.lines), "expected one newline at the end of the file", None)


CHECKS = (check_loads, check_blank_lines, check_indentation, check_trailing_commas, check_sorted, check_visibility,
          check_ends)


def check(path, text):
    """The findings of a file, by line. `path` is relative to the repository's root."""
    try:
        file = BuildFile(path, text)
    except (SyntaxError, tokenize.TokenError) as error:
        return [Finding(getattr(error, "lineno", None) or 1, f"cannot be parsed: {error}", None)]
    return sorted((finding for check in CHECKS for finding in check(file)), key=lambda finding: finding.line)


def fix(path, text):
    """The text with what can be fixed."""
    while True:
        edits = [finding.edit for finding in check(path, text) if finding.edit]
        if not edits:
            return text
        begin, end, replacement = edits[0]  # one at a time, since lists may lie in lists
        text = text[:begin] + replacement + text[end:]


def build_files(root):
    """BUILD files that git knows or would add, or all there are without git."""
    command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others",
               "--exclude-standard", "--", "BUILD", "*/BUILD"]
    try:
        found = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name != ".git" and not name.startswith("bazel-")]
            found += [os.path.relpath(os.path.join(folder, name), root) for name in files if name == "BUILD"]
    return sorted({path for path in found if path and os.path.exists(os.path.join(root, path))})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fix", action="store_true", help="sort lists and add commas where they are missing")
    parser.add_argument("files", nargs="*", metavar="FILE")
    arguments = parser.parse_args()

    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [os.path.relpath(path, root) for path in arguments.files] or build_files(root)
    num_findings = 0
    for path in paths:
        place = os.path.join(root, path)
        with open(place, encoding="utf-8") as file:
            text = file.read()
        if arguments.fix:
            fixed = fix(path, text)
            if fixed != text:
                with open(place, "w", encoding="utf-8") as file:
                    file.write(fixed)
                print(f"{path}: fixed")
            text = fixed
        for finding in check(path, text):
            num_findings += 1
            print(f"{path}:{finding.line}: {finding.message}")
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
