# shellcheck shell=bash
# Sourced by the scripts beside it. Finds the bundle and NVIDIA's libraries:
#   root               the unpacked bundle: the folder this file came with or, in a source tree, a fresh copy of
#                      bazel-bin/deploy/switchyard-bundle.tar.xz, removed when the script that sourced this ends
#   LD_LIBRARY_PATH    completed with the folders of NVIDIA's libraries that the loader does not find by itself
#   NCCL_NVLS_ENABLE   0 unless it is set, because multicast over NVLink needs rights that shared machines do not give
# Exits when there is no bundle or a library is missing.

environment_fail() {
  echo "${BASH_SOURCE[-1]}: $*" >&2
  exit 2
}

find_bundle() {
  local here archive
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  root=$here
  [[ ! -x $here/bin/switchyard_server ]] || return 0
  archive=$here/bazel-bin/deploy/switchyard-bundle.tar.xz
  [[ -e $archive ]] || environment_fail "there is no $archive; run: bazel build -c opt //deploy:bundle"
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  tar -xf "$archive" -C "$unpacked"
  root=$unpacked/switchyard-bundle
}

# Folders that may hold NVIDIA's libraries, the preferred ones first: CUDA_HOME, then the packages of python3.
cuda_folders() {
  local home=${CUDA_HOME:-/usr/local/cuda}
  printf '%s\n' "$home/lib64" "$home/lib" "$home/targets/x86_64-linux/lib"
  ! command -v python3 >/dev/null || python3 -c '
import glob, sys
for folder in sys.path:
    for found in sorted(glob.glob(folder + "/nvidia/*/lib")):
        print(found)'
}

# Sonames that the bundle's programs need and the loader does not find.
missing_libraries() {
  { find "$root/bin" "$root/tests" -maxdepth 1 -type f ! -name '*.py' -exec ldd {} + 2>/dev/null || true; } |
    sed -n 's/^\s*\(\S*\) => not found$/\1/p' | sort -u
}

find_cuda_libraries() {
  local folder soname
  # A CUDA_HOME that was set comes before the programs' own run path, which names the usual place.
  if [[ -n ${CUDA_HOME:-} && -d $CUDA_HOME/lib64 && ! $CUDA_HOME/lib64 -ef /usr/local/cuda/lib64 ]]; then
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$CUDA_HOME/lib64
  fi
  export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
  for soname in $(missing_libraries); do
    while read -r folder; do
      [[ -n $folder && -e $folder/$soname ]] || continue
      [[ :$LD_LIBRARY_PATH: == *:$folder:* ]] || LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
      break
    done < <(cuda_folders)
  done
  missing=$(missing_libraries | tr '\n' ' ')
  [[ -z $missing ]] || environment_fail "not found: ${missing}(looked in: $(cuda_folders | tr '\n' ' '));\
 set CUDA_HOME or LD_LIBRARY_PATH"
}

find_bundle
find_cuda_libraries
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
echo "Bundle: $root"
{ ldd "$root/bin/switchyard_worker" "$root"/tests/*_test 2>/dev/null || true; } |
  sed -n 's/^\s*\(lib\(cublas\|cublasLt\|nccl\)\.so\S* => \S*\).*/\1/p' | sort -u
