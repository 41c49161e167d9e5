#!/bin/sh
# Tells a build with --stamp which commit it is of, with "+dirty" when the tree differs from that commit. Bazel runs this
# before every build, and only //rpc:commit_header of a build with --stamp reads what it prints. Without git, or outside a
# clone, the commit is "unknown".
git() { command git -c safe.directory='*' "$@" 2>/dev/null; }

commit=$(git rev-parse --short HEAD) || commit=unknown
changes=$(git status --porcelain) || changes=
if [ -n "$changes" ]; then commit=$commit+dirty; fi
echo "STABLE_SWITCHYARD_COMMIT $commit"
