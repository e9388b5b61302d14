#!/usr/bin/env bash
# Checks and measures everything on a machine with an NVIDIA GPU, within 8 minutes, and ends with a table for docs/results.md.
# Prints what fails and goes on. Needs no network. Status 1: something failed, or is slower or larger than the project wants.
# usage: PYTHON=python3 test/manual/gpu_check.sh
#   DEVICE=cuda       another one is cuda:1; with cpu, the script itself is tried at small sizes, which tells nothing of a GPU
#   SIZE=256          voxels along each axis of the phantom
#   COMPARED=96       the same, of the phantom on which the fields are compared with the CPU's
#   BRAINSIM=FOLDER   development data with landmarks; by default ../shared/data/BrainSim beside the checkout, if it is there
#   LIMIT_S=460       seconds after which the step that runs is ended, and others are left out
# A machine with torch, numpy, scipy and nibabel lacks some small packages. Where the project's environment is, and with the same
# version of Python, put them into a folder (42 MB), copy it along, and set PYTHONPATH to it. Torch for CUDA brings cuda-bindings;
# without numba, plain torch makes the CPU's fields; SimpleITK, pandas and matplotlib are not used.
#   names='isal|pydantic|pydantic_core|annotated-types|typing-inspection|typer|click|shellingham|annotated-doc|rich|Pygments|'
#   names+='markdown-it-py|mdurl|surface-distance|absl-py|cuda-core|cuda-pathfinder|pytest|iniconfig|packaging|pluggy|hypothesis|'
#   names+='sortedcontainers'
#   .venv/bin/pip freeze | grep -iE "^($names)==" > packages.txt
#   .venv/bin/pip install --no-deps --no-compile --target packages -r packages.txt
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-cuda}
if [ "$device" = cpu ]; then size=${SIZE:-32} compared=${COMPARED:-24} brainsim=${BRAINSIM:-}; else
  size=${SIZE:-256} compared=${COMPARED:-96} brainsim=${BRAINSIM-../shared/data/BrainSim}
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TORCH_DISABLE_NATIVE_JIT=1  # else torch asks Triton, and that a C compiler, for some products of matrices
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" MCBO_CUDA_CACHE="$work/kernels" COMMIT DRIVER
COMMIT=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -n 1)
failed=()

# Runs a command under a name, as long as there is time, says how long it took, and keeps in mind whether it failed.
step() {
  local name=$1 start=$EPOCHREALTIME status left=$((${LIMIT_S:-460} - SECONDS))
  shift
  echo "== $name"
  if [ "$left" -gt 0 ]; then timeout "$left" "$@"; else echo "left out: ${LIMIT_S:-460} s are over" && false; fi
  status=$?
  took=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')
  echo "-- $name: ${took} s, status $status"
  [ "$status" -eq 0 ] || failed+=("$name")
  return "$status"
}
helper() { local name=$1; shift; step "$name" "$python" test/manual/gpu_check.py "$@"; }
register() { local name=$1; shift; step "$name" "$python" process.py "$@" --device "$device" --case 0001 --overwrite; }

helper "packages" missing "$device"
"$python" test/manual/gpu_check.py draw "$work/phantom" "$size" > "$work/draw.log" 2>&1 &
drawing=$!

mapfile -t tests < <(grep -rlE 'mark\.gpu|device: torch\.device' test --include='test_*.py')
step "gpu tests" timeout 60 "$python" -m pytest -m gpu -p no:cacheprovider "${tests[@]}"
wait "$drawing" || { cat "$work/draw.log"; failed+=("phantom"); }

data=("$work/phantom")
[ -n "$brainsim" ] && [ -d "$brainsim" ] && data+=("$brainsim")
for folder in "${data[@]}"; do
  name=$(basename "$folder")
  json=$folder/ReMIND2Reg_dataset.json
  for preset in mcbo2024 cascade; do
    if [ "$folder" = "$work/phantom" ]; then
      rm -rf "$work/kernels"
      register "$preset, a process that compiles the kernels" "$json" --preset "$preset" --output "$work/cold-$preset"
    fi
    register "$name, $preset, a process of its own" "$json" --preset "$preset" --output "$work/$name-$preset" \
      && "$python" test/manual/gpu_check.py wall "$work/process-$name-$preset.json" "$took"
    helper "$name, $preset, TRE" tre "$json" "$work/$name-$preset" "$work/process-$name-$preset.json"
    helper "$name, $preset, warm" measure "$json" "$preset" "$device" "$work/measure-$name-$preset.json"
  done
done

json=$work/phantom/ReMIND2Reg_dataset.json
for preset in mcbo2024 cascade; do
  register "$preset within 3 GB" "$json" --preset "$preset" --memory-gb 3 --output "$work/3gb-$preset"
  [ "$device" = cpu ] || helper "$preset within 3 GB, its peak" peak "$work/3gb-$preset" 3
done

"$python" process.py "$json" --preset mcbo2024 --device "$device" --output "$work/beside" > "$work/beside.log" 2>&1 &
other=$!
register "cascade, with a second process on the card" "$json" --preset cascade --output "$work/alone"
wait "$other" || { cat "$work/beside.log"; failed+=("mcbo2024, as the second process on the card"); }

for preset in mcbo2024 cascade; do
  helper "$preset, compared with the CPU" compare "$preset" "$device" "$compared" "$work/compare-$preset.json"
done

echo "== figures"
"$python" test/manual/gpu_check.py block "$work" "$device" || failed+=("figures")
echo "$SECONDS s in all"
if [ "${#failed[@]}" -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "all passed"
