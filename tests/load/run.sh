#!/usr/bin/env bash
# Measures the scorecard of robustness against the server of this build, and prints it as a table in Markdown: for each
# row what is tried, its limit, what was measured, and whether it holds. docs/benchmarks/robustness.md says what the rows
# are. The figures that storms are compared with are measured in the same run, so nothing else should run beside it.
# The exit code is 0 when no row was missed.
#
#   tests/load/run.sh                        everything; about two hours, half of which is the soak
#   tests/load/run.sh --rows=1,2,9           some rows
#   tests/load/run.sh --quick                small sizes, some minutes; shows that the rows run, not that they hold
#   tests/load/run.sh --rows=15 --soak_minutes=10
#   tests/load/run.sh --rows=4               mutated input; builds its programs under AddressSanitizer first
#   tests/load/run.sh --rows=15 --tsan       also runs the tests tagged "tsan" under ThreadSanitizer, for minutes
#   tests/load/run.sh --program_help         further flags, which go to the program
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

rows=all
tsan=
arguments=()
for argument in "$@"; do
  case $argument in
    --rows=*) rows=,${argument#--rows=}, arguments+=("$argument") ;;
    --tsan) tsan=wanted ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' tests/load/run.sh; exit 0 ;;
    --program_help) arguments+=(--help) ;;
    *) arguments+=("$argument") ;;
  esac
done
is_wanted() { [[ $rows == all || $rows == *,$1,* ]]; }

if is_wanted 4; then
  echo "building the programs of row 4 under AddressSanitizer and UndefinedBehaviorSanitizer, which takes minutes" >&2
  bazel build --config=asan //tests/fuzz/... //moe/weights:config_fuzz_test \
    //moe/weights/checkpoint:safetensors_fuzz_test //server/config:config_file_test >&2
  arguments+=(--fuzz_folder="$(bazel info --config=asan bazel-bin 2>/dev/null)")
fi
if [[ -n $tsan ]] && is_wanted 15; then
  echo "running the tests tagged \"tsan\" under ThreadSanitizer, which takes minutes" >&2
  if bazel test --config=tsan --keep_going //... >&2; then tsan="all passed"; else tsan="some failed"; fi
  arguments+=(--tsan="$tsan")
fi
bazel build -c opt //tests/load:scorecard >&2

versions=$(dpkg-query -W -f '${Package} ${Version}, ' libgrpc++1.51 libprotobuf32 libgomp1 2>/dev/null | sed 's/, $//')
cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)
echo "$(date +%F), $cpu, $(nproc) cores, load average $(cut -d' ' -f1 /proc/loadavg) before. $versions."
echo
TEST_TMPDIR=$(mktemp -d)  # the servers' logs
export TEST_TMPDIR
trap 'rm -rf "$TEST_TMPDIR"' EXIT
program=$PWD/bazel-bin/tests/load/scorecard
cd "$program.runfiles/switchyard"
"$program" ${arguments[@]+"${arguments[@]}"}
