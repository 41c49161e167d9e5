#!/usr/bin/env bash
# Installs what is missing, then checks and tests everything that this machine can run:
#   formatting, the optimised build, every test, and the tests tagged "tsan" and "asan" under ThreadSanitizer and under
#   AddressSanitizer with UndefinedBehaviorSanitizer.
# Ends with `N passed, N failed, N skipped` alone on a line; the exit code is 0 when nothing failed.
#
#   tests/run.sh           everything
#   tests/run.sh --fast    without the sanitizers
set -uo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

sanitizers=(tsan asan)
for argument in "$@"; do
  case $argument in
    --fast) sanitizers=() ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' tests/run.sh; exit 0 ;;
    *) echo "tests/run.sh: unknown argument '$argument'; see --help" >&2; exit 2 ;;
  esac
done

runs=()     # NAME=EVENTS of each bazel test
skipped=()  # --skipped=… arguments for the summary: what no run knows of
failed=()   # --failed=… arguments for the summary, likewise
events=$(mktemp -d) || exit 1
trap 'rm -rf "$events"' EXIT

# Bazel keeps its outputs under HOME, which is not set on some runners.
bazel() {
  if [[ -n ${HOME:-} ]]; then
    command bazel "$@"
  else
    command bazel --output_user_root="${TMPDIR:-/tmp}/bazel-$(id -u)" "$@"
  fi
}

# Removes links that a build in another place, or by another user, left behind, because `//...` would follow them into a
# second copy.
drop_foreign_links() {
  local base link
  base=$(bazel info output_base 2>/dev/null) || return 0
  for link in bazel-*; do
    [[ ! -L $link || $(readlink "$link") == "$base"/* ]] || rm -f "$link"
  done
}

heading() { printf '\n==== %s\n' "$*"; }

# The C++ sources of this tree, separated by NUL: those that git knows or would add, or all files when there is no git.
cxx_sources() {
  git -c safe.directory='*' ls-files -z --cached --others --exclude-standard -- '*.cc' '*.h' '*.cu' '*.cuh' 2>/dev/null ||
    find . \( -name 'bazel-*' -o -name .git \) -prune -o \( -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) \
      -type f -print0
}

check_format() {
  heading "Formatting"
  if cxx_sources | xargs -0 -r clang-format --dry-run -Werror --style=file; then
    echo "as .clang-format says"
  else
    failed+=("--failed=formatting: run clang-format -i on the files above")
  fi
}

build_everything() {
  heading "Build"
  bazel build -c opt --keep_going //... || failed+=("--failed=build: see the errors above")
}

# Reports why CUDA is missing, because targets that need it exist only where CUDA is.
note_cuda() {
  local why
  why=$(cat "$(bazel info output_base 2>/dev/null)/external/cuda/reason.txt" 2>/dev/null)
  [[ -z $why ]] || skipped+=("--skipped=CUDA targets: not built, since $why")
}

# Checks that the bundle carries every GPU test, because GPU machines run only the bundle's tests.
check_bundle() {
  local forgotten
  forgotten=$(bazel query --noshow_progress --noimplicit_deps \
    'attr(tags, "\bgpu\b", tests(//...)) except deps(//deploy:bundle)' 2>/dev/null)
  [[ -z $forgotten ]] || failed+=("--failed=deploy/BUILD: the bundle lacks ${forgotten//$'\n'/ }")
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# Runs one `bazel test` under a name for the summary.
run_tests() {
  local name=$1 log="$events/$1.json"
  shift
  runs+=("$name=$log")
  # The events record every failure, also when nothing could be built.
  bazel test --keep_going --test_output=summary --build_event_json_file="$log" "$@" //... || true
}

run_all_tests() {
  heading "Tests"
  local filters=-sanitizer-only test
  if ! has_gpu; then
    filters+=,-gpu
    for test in $(bazel query --noshow_progress 'attr(tags, "\bgpu\b", tests(//...))' 2>/dev/null); do
      skipped+=("--skipped=$test: no GPU on this machine")
    done
  fi
  run_tests tests -c opt --build_tests_only --test_tag_filters="$filters" --test_env=SWITCHYARD_CONFORMANCE_PYTHON \
    --test_env=SWITCHYARD_PERF_ANALYZER
}

# Finds the clients of tests/conformance, from PyPI. Without them its tests count as skipped, and say what is missing.
find_conformance_clients() {
  heading "Clients for tests/conformance"
  local python
  if python=$(tests/conformance/setup.sh); then
    export SWITCHYARD_CONFORMANCE_PYTHON=$python
    echo "$python"
  fi
}

run_sanitizers() {
  local name
  for name in ${sanitizers[@]+"${sanitizers[@]}"}; do
    heading "Tests under $name"
    run_tests "$name" --config="$name"
  done
}

heading "Packages"
deploy/install.sh || exit 1
echo "all there"
drop_foreign_links
find_conformance_clients
check_format
build_everything
note_cuda
check_bundle
run_all_tests
run_sanitizers
heading "Summary"
python3 tests/summarize.py ${skipped[@]+"${skipped[@]}"} ${failed[@]+"${failed[@]}"} "${runs[@]}"
