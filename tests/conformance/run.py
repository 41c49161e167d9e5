#!/usr/bin/env python3
"""Runs one conformance test file under pytest, and leaves JUnit XML where Bazel looks for it.

    run.py FILE_test.py

The clients that the tests drive are not Debian packages. tests/conformance/setup.sh installs them into an environment
of their own. Without them, the file counts as one skipped case, which says why.
"""

import os
import sys
from xml.sax.saxutils import quoteattr


def missing_module():
    """The import error of the first client that is not installed; None when all are."""
    try:
        import grpc_health.v1  # noqa: F401
        import grpc_reflection.v1alpha  # noqa: F401
        import ml_dtypes  # noqa: F401
        import pytest  # noqa: F401
        import safetensors.numpy  # noqa: F401
        import tritonclient.grpc  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def report_skipped(name, reason):
    print(f"SKIPPED: {name}: {reason}")
    path = os.environ.get("XML_OUTPUT_FILE")
    if not path:
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<testsuites><testsuite name="conformance" tests="1" skipped="1">'
                   f'<testcase classname="conformance" name={quoteattr(name)}><skipped message={quoteattr(reason)}/>'
                   f"</testcase></testsuite></testsuites>\n")


def main():
    test = sys.argv[1]
    missing = missing_module()
    if missing is not None:
        report_skipped(os.path.basename(test), f"{missing}; see tests/conformance/setup.sh")
        return 0
    import pytest
    arguments = ["-v", "--tb=short", "-p", "no:cacheprovider", test]
    xml = os.environ.get("XML_OUTPUT_FILE")
    if xml:
        arguments.append(f"--junitxml={xml}")
    return pytest.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
