#!/usr/bin/env bash
# Compiles the CUDA kernels with nvcc for all architectures of the image, and prints what each kernel needs there:
# registers of a thread, bytes of shared memory of a block, bytes spilled. Needs no GPU. Status 1: something is spilled.
# usage: test/manual/cuda_compile.sh      PYTHON=… an interpreter with requirements.txt installed
#                                         NVCC=… another nvcc, ARCHITECTURES="75 90" fewer
set -euo pipefail
cd "$(dirname "$0")/../.."
read -ra architectures <<< "${ARCHITECTURES:-75 80 86 89 90 100 120}"
targets=()
for number in "${architectures[@]}"; do targets+=(-gencode "arch=compute_$number,code=sm_$number"); done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-.venv/bin/python}" - <<'P' > "$work/modules"
from os.path import relpath
from mcbo.kernels.cuda import MODULES
from mcbo.kernels.cuda.compiler import SOURCES, options_of
for module in MODULES:
    exact = [] if options_of(module).get("fma", True) else ["--fmad=false"]
    print(relpath(SOURCES / module.file), *exact, *(f"-D{name}={value}" for name, value in module.constants))
P
: > "$work/log"
while read -ra module; do
  echo "module $(basename "${module[*]}")" >> "$work/log"
  "${NVCC:-nvcc}" -std=c++17 -fatbin -Xptxas -v "${targets[@]}" -o /dev/null "${module[@]}" >> "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
done < "$work/modules"

awk -v architectures="${architectures[*]}" '
  function number(before, after,   part) {  # the one that stands between two words, or 0
    if (!match($0, before "[0-9]+ " after)) return 0
    part = substr($0, RSTART, RLENGTH); gsub(/[^0-9]/, "", part); return part
  }
  /^module / { module = substr($0, 8) }
  /Compiling entry function/ { split($0, word, "\047"); kernel = module ": " word[2]; target = word[4]
                               if (!(kernel in seen)) { seen[kernel] = 1; order[++kernels] = kernel } }
  /bytes spill stores/ { spilled = number("", "bytes spill stores") + number("", "bytes spill loads") }
  /Used [0-9]+ registers/ {
    cell[kernel, target] = number("Used ", "registers") "/" number("", "bytes smem") "/" spilled; all += spilled }
  END {
    count = split(architectures, names, " ")
    for (i = 1; i <= count; i++) printf "%15s", "sm_" names[i]
    print "   registers/shared bytes/spilled bytes"
    for (k = 1; k <= kernels; k++) {
      for (i = 1; i <= count; i++) printf "%15s", cell[order[k], "sm_" names[i]]
      print "   " order[k]
    }
    if (!kernels) { print "expected kernels to compile, found none"; exit 1 }
    if (all) { print "spilled: " all " bytes"; exit 1 }
  }' "$work/log"
