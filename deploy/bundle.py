#!/usr/bin/env python3
"""Packs Switchyard's programs into one archive that runs on other distributions. `bazel build -c opt //deploy:bundle`

The archive holds one folder, switchyard-bundle/:

    bin/         the three programs
    lib/         every shared library they need, beyond the C library and NVIDIA's
    tests/       the GPU tests and benchmarks, with the scripts that run them
    licenses/    of Switchyard and of each package that lib/ was taken from

The small checkpoints with recorded outputs, which some GPU tests need, are not in it: they are in a source tree's
tests/testdata, and do not compress.

Run paths are relative, so the folder may lie anywhere. NVIDIA's libraries are looked for in LD_LIBRARY_PATH and in
/usr/local/cuda/lib64; only workers and GPU tests need them.

The libraries are those of the machine this runs on, as ldd resolves them. A library that is not found, or that comes
from an unexpected place, is an error, and so is an archive beyond --max_mib.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

NAME = "switchyard-bundle"
DEFAULT_CUDA_LIBRARIES = "/usr/local/cuda/lib64"

# The C library must be the system's, because it must match the system's loader.
C_LIBRARY = re.compile(r"^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|anl|nsl|nss_\w+))\.so")
NVIDIA = re.compile(r"^lib(cuda|cudart|cublas|cublasLt|nccl|nvrtc|nvJitLink|nvidia-.*)\.so")

# More than the whole archive, because five programs hold the same GPU kernels, far apart: within one dictionary they are
# stored once. Unpacking needs as much memory.
DICTIONARY = "256MiB"

SYSTEM_FOLDERS = ("/lib/", "/usr/lib/", "/lib64/")


def run(*command):
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"bundle.py: {' '.join(command)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def libraries_of(program):
    """The shared libraries to carry, {soname: path}."""
    libraries = {}
    for line in run("ldd", program).splitlines():
        soname, _, rest = line.strip().partition(" => ")
        soname = os.path.basename(soname.split()[0])
        if C_LIBRARY.match(soname) or NVIDIA.match(soname) or soname == "statically":
            continue
        path = rest.split(" (")[0]
        if not path.startswith(SYSTEM_FOLDERS):
            expected = ", ".join(SYSTEM_FOLDERS)
            sys.exit(f"bundle.py: {program} needs {soname}, expected in {expected}; found: {line.strip()}")
        libraries[soname] = path
    return libraries


def add_binary(source, target, run_path):
    if os.path.exists(target):
        sys.exit(f"bundle.py: two files want to be {target}")
    shutil.copyfile(source, target)
    os.chmod(target, 0o755)
    run("strip", "--strip-unneeded", target)
    run("patchelf", "--set-rpath", run_path, target)


def add_file(source, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if os.stat(source).st_mode & 0o111 else 0o644)


def package_of(path):
    # Before Debian merged /lib into /usr/lib, packages named their files there; some still do.
    for name in (path, os.path.realpath(path), "/usr" + path, path.removeprefix("/usr")):
        command = ["dpkg-query", "--search", name]
        found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if found.returncode == 0:
            return found.stdout.split(":")[0]
    sys.exit(f"bundle.py: no package owns {path}, so its licence is not known")


def add_licences(paths, folder):
    for package in sorted({package_of(path) for path in paths}):
        add_file(f"/usr/share/doc/{package}/copyright", f"{folder}/{package}.txt")


def below(path, folder):
    """The part of `path` behind the last `folder` in it."""
    return path[path.rindex(folder + "/") + len(folder) + 1:]


def fill(root, arguments):
    for folder in ("bin", "lib", "tests"):
        os.makedirs(f"{root}/{folder}")
    libraries = {}
    for folder, programs in (("bin", arguments.program), ("tests", arguments.test)):
        for program in programs:
            libraries.update(libraries_of(program))
            target = f"{root}/{folder}/{os.path.basename(program)}"
            add_binary(program, target, f"$ORIGIN/../lib:{DEFAULT_CUDA_LIBRARIES}")
    for soname, path in libraries.items():
        add_binary(path, f"{root}/lib/{soname}", "$ORIGIN")
    for path in arguments.script:
        add_file(path, f"{root}/tests/{below(path, 'tests')}")
    add_file(arguments.license, f"{root}/licenses/switchyard.txt")
    add_licences(libraries.values(), f"{root}/licenses")


def pack(root, output):
    """Writes a .tar.xz that is the same whenever its content is the same."""
    tar = ["tar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "-C", os.path.dirname(root)]
    with open(output, "wb") as file:
        packing = subprocess.Popen(tar + ["-c", NAME], stdout=subprocess.PIPE)
        compressing = subprocess.run(["xz", "--threads=1", f"--lzma2=preset=4,dict={DICTIONARY}"], stdin=packing.stdout,
                                     stdout=file)
        packing.stdout.close()
        if packing.wait() != 0 or compressing.returncode != 0:
            sys.exit(f"bundle.py: {output} could not be written")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--license", required=True)
    parser.add_argument("--max_mib", type=int, required=True)
    parser.add_argument("--program", nargs="+", required=True, help="for bin/")
    parser.add_argument("--test", nargs="*", default=[], help="programs for tests/")
    parser.add_argument("--script", nargs="*", default=[], help="files for tests/, with their folders below tests/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        fill(f"{work}/{NAME}", arguments)
        pack(f"{work}/{NAME}", arguments.output)
    mib = os.path.getsize(arguments.output) / 2**20
    if mib > arguments.max_mib:
        sys.exit(f"bundle.py: {arguments.output} has {mib:.1f} MiB, more than {arguments.max_mib}")


if __name__ == "__main__":
    main()
