#!/usr/bin/env bash
# Installs what is missing, then checks and tests everything that this machine can run:
#   style, the includes between rooms, the optimised build, locks (clang's -Wthread-safety), clang-tidy on the sources
#   that changed, every test, and the tests tagged "tsan" and "asan" under ThreadSanitizer and under AddressSanitizer
#   with UndefinedBehaviorSanitizer.
# Ends with `N passed, N failed, N skipped` alone on a line; the exit code is 0 when nothing failed.
#
#   tests/run.sh               everything
#   tests/run.sh --fast        without the sanitizers
#   tests/run.sh --tidy-all    everything, and clang-tidy on every source, which takes long
set -uo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

sanitizers=(tsan asan)
tidy_all=false
max_tidy_sources=40  # of those that changed; each takes some seconds
for argument in "$@"; do
  case $argument in
    --fast) sanitizers=() ;;
    --tidy-all) tidy_all=true ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' tests/run.sh; exit 0 ;;
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

# The files of this tree whose names match one of the patterns, NUL between them: those that git knows or would add, or
# all there are without git.
sources() {
  local pattern names=(-false)
  for pattern in "$@"; do names+=(-o -name "$pattern"); done
  git -c safe.directory='*' ls-files -z --cached --others --exclude-standard -- "$@" 2>/dev/null ||
    find . \( -name 'bazel-*' -o -name .git \) -prune -o -type f \( "${names[@]}" \) -print0
}

# Shell scripts are called *.sh, or have a name without a dot and a first line that names a shell.
shell_scripts() {
  local file line
  sources '*' | while IFS= read -r -d '' file; do
    line=
    [[ ${file##*/} == *.* || ! -f $file ]] || IFS= read -r line <"$file"
    if [[ $file == *.sh || $line == '#!'*sh ]]; then printf '%s\0' "$file"; fi
  done
}

# Runs one check that is not a test. Its name and what to do next, for the summary, come before the command.
check_that() {
  local name=$1 advice=$2
  shift 2
  if "$@"; then
    echo "$name: nothing found"
  else
    failed+=("--failed=$name: $advice")
  fi
}

check_cxx() { sources '*.cc' '*.h' '*.cu' '*.cuh' | xargs -0 -r clang-format --dry-run -Werror --style=file; }
check_shell() { shell_scripts | xargs -0 -r shellcheck; }

# ruff comes from PyPI. Where it cannot be had, the check counts as skipped.
check_python() {
  local ruff
  if ruff=$(tests/style/setup.sh 2>"$events/ruff"); then
    check_that "Python (ruff)" "run $ruff check --fix, and change what it lists" \
      "$ruff" check --quiet --no-cache .
  else
    skipped+=("--skipped=Python (ruff): it could not be installed: $(tail -n 1 "$events/ruff")")
  fi
}

check_style() {
  heading "Style"
  check_that "C++ (clang-format)" "run clang-format -i on the files above" check_cxx
  check_that "shell (shellcheck)" "change what is listed above; the wiki of shellcheck explains each code" \
    check_shell
  check_that "BUILD files" "run tests/style/check_build_files.py --fix, and change what it lists" \
    tests/style/check_build_files.py
  check_python
}

check_includes() {
  heading "Includes between rooms"
  check_that "includes" "change the include, or the table of rooms in docs/architecture.md" \
    tests/style/check_includes.py
}

check_locks() {
  heading "Locks (clang -Wthread-safety)"
  check_that "locks (clang -Wthread-safety)" "see the errors above, and base/mutex.h" \
    bazel build --config=thread-safety //...
}

tidy() {
  check_that "clang-tidy" "see the findings above; .clang-tidy says what is checked" bazel build --keep_going "$@" //...
}

# Checks what changed, at most so many sources that it takes minutes; --tidy-all checks everything.
check_tidy() {
  heading "clang-tidy"
  local listed changed groups
  if $tidy_all; then
    tidy --config=clang-tidy
    return
  fi
  if ! listed=$(tests/style/changed_sources.py 2>"$events/changed"); then
    skipped+=("--skipped=clang-tidy: $(tail -n 1 "$events/changed"); bazel build --config=clang-tidy //... checks all")
    return
  fi
  if [[ -z $listed ]]; then
    echo "clang-tidy: no source changed"
    return
  fi
  mapfile -t changed <<<"$listed"
  if ((${#changed[@]} > max_tidy_sources)); then
    skipped+=("--skipped=clang-tidy: $((${#changed[@]} - max_tidy_sources)) of ${#changed[@]} sources that a change \
touches; tests/run.sh --tidy-all, or bazel build --config=clang-tidy //..., checks all")
    changed=("${changed[@]:0:max_tidy_sources}")
  fi
  printf '%s\n' "${changed[@]}"
  groups=$(printf ',clang_tidy/%s' "${changed[@]}")
  tidy --aspects=//bazel:clang_tidy.bzl%clang_tidy_aspect --output_groups="${groups#,}"
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
check_style
check_includes
build_everything
note_cuda
check_bundle
check_locks
check_tidy
run_all_tests
run_sanitizers
heading "Summary"
python3 tests/summarize.py ${skipped[@]+"${skipped[@]}"} ${failed[@]+"${failed[@]}"} "${runs[@]}"
