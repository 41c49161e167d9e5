#!/usr/bin/env python3
"""Counts the test cases of Bazel runs and ends with `N passed, N failed, N skipped` alone on a line.

    tests/summarize.py [--skipped=TEXT]... [--failed=TEXT]... NAME=EVENTS.json...

Each EVENTS.json is a file that one `bazel test --build_event_json_file=EVENTS.json` wrote. NAME distinguishes its cases
from those of the other runs. The files say which tests ran, so that nothing left over from an earlier run is counted. A
test that wrote no XML counts as one case. --skipped and --failed add a line that no run knows of. Exits with 1 when
anything failed.
"""

import argparse
import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections import namedtuple

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
LOG_TAIL_LINES = 60

Case = namedtuple("Case", "run target name result reason")


def path_of(uri):
    """The local path of a file:// URI."""
    return urllib.parse.unquote(urllib.parse.urlparse(uri).path)


def read_events(path):
    try:
        with open(path, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        print(f"summarize.py: {path}: {error}", file=sys.stderr)
        return []


def last_attempts(events):
    """{(label, run, shard): testResult} of the last attempt of each."""
    results = {}
    for event in events:
        key = event.get("id", {}).get("testResult")
        if key is None or "testResult" not in event:
            continue
        place = (key["label"], key.get("run", 1), key.get("shard", 1))
        results[place] = event["testResult"]  # attempts come in order
    return results


def case_of(run, target, node):
    name = f"{node.get('classname', '')}.{node.get('name', '')}".strip(".")
    for tag in ("failure", "error"):
        found = node.find(tag)
        if found is not None:
            text = found.get("message") or found.text or ""
            return Case(run, target, name, FAILED, text.strip().split("\n")[0])
    skipped = node.find("skipped")
    if skipped is not None or node.get("result") == "skipped":
        text = "" if skipped is None else skipped.get("message") or skipped.text or ""
        # GoogleTest's message starts with the source location of GTEST_SKIP.
        lines = [line for line in text.strip().split("\n") if line]
        return Case(run, target, name, SKIPPED, lines[-1].strip() if lines else "no reason given")
    if node.get("status") == "notrun":
        return Case(run, target, name, SKIPPED, "disabled")
    return Case(run, target, name, PASSED, "")


def cases_of_xml(run, target, path):
    try:
        return [case_of(run, target, node) for node in ElementTree.parse(path).iter("testcase")]
    except (OSError, ElementTree.ParseError):
        return []


def cases_of_result(run, label, result):
    """The cases of one test process, at least one. A failed process has at least one failed case."""
    outputs = {output.get("name"): path_of(output.get("uri", "")) for output in result.get("testActionOutput", [])}
    cases = cases_of_xml(run, label, outputs.get("test.xml", ""))
    status = result.get("status", "NO_STATUS")
    if status in ("PASSED", "FLAKY"):
        return cases or [Case(run, label, label, PASSED, "")]
    if not any(case.result == FAILED for case in cases):
        cases.append(Case(run, label, label, FAILED, status.lower().replace("_", " ")))
    return cases


def unbuilt_tests(run, events, seen):
    """A failed case for each test that never ran because it could not be built."""
    tests = {
        event["id"]["targetConfigured"]["label"]
        for event in events
        if "configured" in event and event["configured"].get("targetKind", "").endswith("_test rule")
    }
    completed = {
        event["id"]["targetCompleted"]["label"]
        for event in events
        if "targetCompleted" in event.get("id", {}) and not event.get("completed", {}).get("success")
    }
    return [Case(run, label, label, FAILED, "it could not be built") for label in sorted(tests & completed - seen)]


def exit_name(events):
    for event in events:
        if "finished" in event:
            return event["finished"].get("exitCode", {}).get("name", "unknown")
    return "no end of the run was recorded"


def cases_of_run(run, events):
    cases = []
    results = last_attempts(events)
    for (label, _, _), result in sorted(results.items()):
        cases += cases_of_result(run, label, result)
    cases += unbuilt_tests(run, events, {label for label, _, _ in results})
    ended = exit_name(events)
    explained = ended in ("SUCCESS", "NO_TESTS_FOUND") or any(case.result == FAILED for case in cases)
    return cases if explained else cases + [Case(run, "bazel test", "", FAILED, ended)]


def print_log_tails(run, events):
    for (label, _, _), result in sorted(last_attempts(events).items()):
        if result.get("status") in ("PASSED", "FLAKY"):
            continue
        print(f"\n---- {label} ({run}): the end of its log")
        for output in result.get("testActionOutput", []):
            if output.get("name") != "test.log":
                continue
            try:
                with open(path_of(output["uri"]), encoding="utf-8", errors="replace") as log:
                    print("".join(log.readlines()[-LOG_TAIL_LINES:]).rstrip())
            except OSError as error:
                print(error)


def print_cases(title, cases):
    if not cases:
        return
    print(f"\n{title}:")
    for case in cases:
        where = f" [{case.run}]" if case.run else ""
        whole = case.name in ("", case.target, case.target.lstrip("/").replace(":", "/"))  # the last is Bazel's own XML
        name = case.target if whole else f"{case.target} {case.name}"
        print(f"  {name}{where}: {case.reason}".rstrip(": "))


def print_summary(cases):
    """Prints the skipped and failed cases, then the counts. Returns the exit code."""
    by_result = {result: [case for case in cases if case.result == result] for result in (PASSED, FAILED, SKIPPED)}
    print_cases("Skipped", by_result[SKIPPED])
    print_cases("Failed", by_result[FAILED])
    print()
    print(", ".join(f"{len(by_result[result])} {result}" for result in (PASSED, FAILED, SKIPPED)))
    return 1 if by_result[FAILED] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--skipped", action="append", default=[], metavar="TEXT")
    parser.add_argument("--failed", action="append", default=[], metavar="TEXT")
    parser.add_argument("runs", nargs="*", metavar="NAME=EVENTS.json")
    arguments = parser.parse_args()

    cases = [Case("", text, "", FAILED, "") for text in arguments.failed]
    cases += [Case("", text, "", SKIPPED, "") for text in arguments.skipped]
    for argument in arguments.runs:
        run, _, path = argument.partition("=")
        events = read_events(path)
        print_log_tails(run, events)
        cases += cases_of_run(run, events)

    return print_summary(cases)


if __name__ == "__main__":
    sys.exit(main())
