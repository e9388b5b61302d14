#!/usr/bin/env bash
# Builds the image and runs it as the organizers do: no network, read-only root, no capabilities, memory capped, any user.
# usage: test/container.sh      PYTHON=… an interpreter with requirements.txt installed, for the run outside the container
#                               EXPORT=file.tar.gz also makes the tarball that grand-challenge.org takes
# Uses Docker where a daemon answers; else podman on a Debian base made here (as root on Debian; installs what it needs).
set -euo pipefail
if [ -n "${EXPORT:-}" ]; then EXPORT=$(realpath "$EXPORT"); fi
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
lab=$(mktemp -d /var/tmp/mcbo-container.XXXXXX)
image=localhost/mcbo:test
judge=localhost/mcbo-evaluation:test
step() { echo "[+${SECONDS}s] $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

build_options=()
if docker info >/dev/null 2>&1; then
  engine=docker
else
  engine=podman
  if ! command -v podman >/dev/null || ! command -v runc >/dev/null || ! command -v mmdebstrap >/dev/null; then
    step "install podman"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends podman runc mmdebstrap >/dev/null
  fi
  # runc: crun refuses hybrid control groups. Limits: podman's defaults are above what a root without CAP_SYS_RESOURCE may set.
  processes=$(ulimit -Hu); if [ "$processes" = unlimited ] || [ "$processes" -gt 32768 ]; then processes=32768; fi
  files=$(ulimit -Hn); if [ "$files" = unlimited ]; then files=1048576; fi
  cat > "$lab/containers.conf" <<C
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=$processes:$processes"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
C
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$lab" "$lab" > "$lab/storage.conf"
  export CONTAINERS_CONF=$lab/containers.conf CONTAINERS_STORAGE_CONF=$lab/storage.conf
fi
cleanup() {
  local status=$?
  if [ $status -ne 0 ]; then
    echo "FAILED with status $status; the last logs:"
    find "$lab" -maxdepth 1 \( -name '*.err' -o -name '*.log' \) -size +0 -printf '%T@ %p\n' | sort -n | tail -3 | cut -d' ' -f2 |
      while read -r log; do echo "--- $(basename "$log")"; tail -15 "$log"; done
  fi
  # What containers wrote belongs to their users, which only a root may delete.
  $engine run --rm --user 0 --entrypoint rm -v "$lab:/lab" "$image" -rf /lab/shown /lab/plain /lab/two /lab/both /lab/asked /lab/alone >/dev/null 2>&1 || true
  $engine ps -aq --filter "ancestor=$image" 2>/dev/null | xargs -r $engine rm -f >/dev/null 2>&1 || true
  $engine rmi -f "$image-invoke" "$image" "$judge" >/dev/null 2>&1 || true
  if [ $engine = podman ]; then podman rmi -af >/dev/null 2>&1 || true; fi
  rm -rf "$lab" 2>/dev/null || true
  exit $status
}
trap cleanup EXIT

if [ $engine = podman ]; then
  step "make the base"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm "$lab/base.tar"
  podman import -q "$lab/base.tar" localhost/base:test >/dev/null
  rm "$lab/base.tar"
  # This host's pip settings go into the build, whatever they are: a pip.conf, and the local folders it names.
  "$python" - "$lab" > "$lab/mounts" <<'P'
import ast, os, subprocess, sys
lab, settings, mounts = sys.argv[1], {}, {}
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
for line in listed.splitlines():
    key, _, value = line.partition("=")
    settings.setdefault(key.rsplit(".", 1)[1], ast.literal_eval(value))
for key, value in settings.items():
    for word in value.split():
        path = word.removeprefix("file://")
        if not path.startswith("/") or not os.path.exists(path):
            continue
        if key == "cert":
            mounts[path] = settings[key] = "/run/ci/ca.crt"
        else:
            folder = os.path.dirname(path) if path.rstrip("/").endswith("/simple") else path
            mounts[folder] = folder
with open(f"{lab}/pip.conf", "w") as file:
    file.write("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
mounts[f"{lab}/pip.conf"] = "/etc/pip.conf"
print("\n".join(f"--volume={source}:{target}:ro" for source, target in mounts.items()))
P
  mapfile -t build_options < "$lab/mounts"
  build_options+=(--pull=never --network host --build-arg BASE_IMAGE=localhost/base:test)
fi

step "build with $engine"
started=$SECONDS
$engine build "${build_options[@]}" -t "$image" . > "$lab/build.log" 2>&1 || { tail -40 "$lab/build.log"; fail "build"; }
size=$($engine image inspect "$image" --format '{{.Size}}')
step "built in $((SECONDS - started)) s, $((size / 1000000)) MB"
[ "$size" -lt 2000000000 ] || [ -n "${ALLOW_LARGE:-}" ] || fail "expected an image for CPU torch under 2 GB"
user=$($engine image inspect "$image" --format '{{.Config.User}}')
case $user in [1-9]*) ;; *) fail "expected a numeric user that is not root, found '$user'" ;; esac

step "SBOM: the image holds what the lock has"
ENGINE=$engine .ci/sbom --image "$image" > "$lab/sbom.json"
"$python" - "$lab/sbom.json" .ci/image.lock <<'P' || fail "expected an image that holds what the lock has"
import json, re, sys
from pathlib import Path
bom, lock = (Path(path).read_text() for path in sys.argv[1:])
held = {re.sub("[._]", "-", part["name"].lower()): part["version"] for part in json.loads(bom)["components"]}
for name, version, marker in re.findall(r"^([a-z0-9-]+)==([^\s;]+)( ;)?", lock, flags=re.MULTILINE):
    assert held.pop(name, version if marker else None) == version, f"{name}: not {version}"
assert "torch" in held
print("beyond the lock:", ", ".join(f"{name} {version}" for name, version in sorted(held.items())))
P

# Cases as small as these leave the default preset nothing to believe: it would write zeros, and all zeros are alike.
export MCBO_PRESET=mcbo2024
limits=(-e MCBO_PRESET --network none --read-only --tmpfs /tmp:size=512m --cap-drop ALL --security-opt no-new-privileges
  --memory 8g --memory-swap 8g --shm-size 128m --pids-limit 512)
new() { mkdir -p "$lab/$1"; chmod 777 "$lab/$1"; echo "$lab/$1"; }
# run INPUT OUTPUT [engine options] -- [program arguments]
run() {
  local input=$1 output=$2 options=(); shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  if [ $# -gt 0 ]; then shift; fi
  timeout 600 $engine run --rm "${limits[@]}" -v "$input:/input:ro" -v "$output:/output" "${options[@]}" "$image" "$@"
}
same() { "$python" - "$@" <<'P' || fail "expected the same fields in $*"
import sys
from pathlib import Path
import nibabel
import numpy as np
first, *others = map(Path, sys.argv[1:])
names = sorted(path.name for path in first.glob("disp_*.nii.gz"))
assert names, f"no field in {first}"
for other in others:
    assert sorted(path.name for path in other.glob("disp_*.nii.gz")) == names, other
    for name in names:
        a, b = (np.asarray(nibabel.load(folder / name).dataobj) for folder in (first, other))
        assert a.dtype == b.dtype == np.float32 and np.array_equal(a, b), f"{other / name} differs"
        assert a.any(), f"{other / name} is zero"
P
}

# The evaluation container, as grand-challenge.org and Codabench run it: four jobs, of which one is right.
# evaluation_container DATASET_FOLDER FIELDS
evaluation_container() {
  local data=$1 fields=$2 jobs output size user
  step "build the evaluation container"
  $engine build "${build_options[@]}" --target evaluation -t "$judge" . > "$lab/judge.log" 2>&1 || { tail -40 "$lab/judge.log"; fail "build"; }
  size=$($engine image inspect "$judge" --format '{{.Size}}'); echo "$((size / 1000000)) MB"
  user=$($engine image inspect "$judge" --format '{{.Config.User}}')
  case $user in [1-9]*) ;; *) fail "expected a numeric user that is not root, found '$user'" ;; esac
  jobs=$(new jobs)
  "$python" - "$data/$json" "$fields" "$jobs" <<'P'
import json, sys
from pathlib import Path
import nibabel, numpy as np, SimpleITK as sitk
from evaluation.pairs import read_pairs
dataset, fields, jobs = map(Path, sys.argv[1:])
listed = []
for kind, pair in zip(("right", "missing", "nan", "misshapen"), read_pairs(dataset)):
    image = nibabel.load(fields / f"{pair.field_name}.nii.gz")
    field = np.asarray(image.dataobj, dtype=np.float64)
    if kind == "nan":
        field[3, 3, 3, 0] = np.nan
    field = field[:-1] if kind == "misshapen" else field
    lps = np.diag((-1.0, -1.0, 1.0)) @ image.affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    vectors = sitk.GetImageFromArray(np.ascontiguousarray((field @ lps[:, :3].T).transpose(2, 1, 0, 3)), isVector=True)
    vectors.SetOrigin(lps[:, 3].tolist()); vectors.SetSpacing(spacing.tolist()); vectors.SetDirection((lps[:, :3] / spacing).ravel().tolist())
    folder = jobs / kind / "output/images/displacement-field"
    folder.mkdir(parents=True)
    if kind != "missing":
        sitk.WriteImage(vectors, folder / "output.mha", True)
    names = [path.name.replace(".nii.gz", ".mha") for path in (pair.fixed, pair.moving)]
    listed.insert(0, {
        "pk": kind, "status": "Succeeded", "exec_duration": "P0DT00H00M12.5S", "invoke_duration": None,
        "inputs": [{"socket": {"slug": slug}, "image": {"name": name}} for slug, name in zip(("us", "mr"), names)],
        "outputs": [{"socket": {"slug": "displacement-field", "relative_path": "images/displacement-field"}}],
    })
(jobs / "predictions.json").write_text(json.dumps(listed))
P
  "$python" -m evaluation score --dataset "$data/$json" --predictions "$fields" --output "$lab/scores.json" > /dev/null
  for user in "$user" 34567:34567; do
    step "evaluation as user $user"
    output=$(new "judged-${user%%:*}")
    timeout 300 $engine run --rm "${limits[@]}" --user "$user" -v "$jobs:/input:ro" -v "$data:/opt/ml/input/data/ground_truth:ro" \
      -v "$output:/output" "$judge" > "$lab/judged.log" 2> "$lab/judged.err"
    "$python" - "$lab/scores.json" "$output/metrics.json" <<'P' || fail "metrics.json"
import json, sys
scores, metrics = (json.load(open(path)) for path in sys.argv[1:])
first, *others = metrics["results"]
def same(a, b):
    if isinstance(a, dict):
        return all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return abs(a - b) <= 1e-9 if isinstance(a, float) else a == b
assert first["job"] == "right" and first["runtime_s"] == 12.5, first
assert same(scores["cases"][first["pair"]], first), "not the numbers of evaluation score"
for result, words in zip(others, ("empty folder", "NaN", "expected the shape", "expected a job", "expected a job"), strict=True):
    assert words in result["error"] and result["TRE_lm"]["mean"] is None, result
assert (metrics["aggregates"]["scored"], metrics["aggregates"]["failed"]) == (1, 5)
print("the right job has the numbers of evaluation score; the others:", *(r["error"].split(":")[-1].strip()[:60] for r in others), sep="\n  ")
P
  done
  step "Codabench"
  output=$(new codabench)
  timeout 300 $engine run --rm "${limits[@]}" -v "$data:/app/input/ref:ro" -v "$fields:/app/input/res:ro" -v "$output:/app/output" \
    "$judge" codabench > /dev/null
  "$python" - "$lab/scores.json" "$output" <<'P' || fail "scores.json"
import json, sys
from pathlib import Path
scores, flat = json.load(open(sys.argv[1])), json.load(open(f"{sys.argv[2]}/scores.json"))
assert abs(flat["TRE_lm"] - scores["aggregates"]["TRE_lm"]["mean"]) <= 1e-9 and flat["failed"] == 0, flat
assert "<table>" in Path(sys.argv[2], "detailed_results.html").read_text()
print(flat)
P
}

step "make data: three cases, two moving modalities; and small ones to spoil"
data=$lab/data
"$python" - "$data" "$lab/small" <<'P'
import json, sys
from pathlib import Path
from mcbo.studies.demo import write_dataset
from mcbo.studies.phantom import make_phantom
for folder, shape in zip(sys.argv[1:], ((44, 40, 48), (14, 12, 16))):
    pairs = []
    for seed in (1, 2, 3):
        path = write_dataset(make_phantom(shape, seed=seed, wedge=True), Path(folder), case=f"{seed:04d}")
        content = json.loads(path.read_text())
        pairs += content["registration_val"]
    path.write_text(json.dumps(content | {"registration_val": pairs}))
P
json=ReMIND2Reg_dataset.json

step "outside the container"
outside=$(new outside)
"$python" process.py "$data/$json" --output "$outside" --device cpu > "$lab/outside.log"

step "no argument, as ReMIND2Reg"
plain=$(new plain); run "$data" "$plain" > "$lab/plain.log" 2> "$lab/plain.err"
[ ! -s "$lab/plain.err" ] || fail "expected nothing on stderr, found $(cat "$lab/plain.err")"
step "another user, no home; nothing has to be compiled"
other=$(new other)
run "$data" "$other" --user 12345:12345 -e HOME=/nonexistent -e TMPDIR=/output --entrypoint sh -- \
  -c 'python process.py && find /output -name "*.nbc" > /output/compiled' > /dev/null
if grep -q avx2 /proc/cpuinfo && [ -s "$other/compiled" ]; then fail "compiled in the container: $(cat "$other/compiled")"; fi
step "JSON as the argument, as Learn2Reg"
named=$(new named); run "$data" "$named" -v "$data:/somewhere:ro" -v "$named:/else" -- "/somewhere/$json" --output /else > /dev/null
same "$outside" "$plain" "$other" "$named"
echo "identical fields: outside, image's user, user 12345, JSON mode"

step "images alone, one modality by environment"
single=$(new single); run "$data/imagesTr" "$single" -e MCBO_MOVING=0001 -e MCBO_CASE=0002 > /dev/null
[ "$(ls "$single")" = "disp_0002_0000_0002_0001.nii.gz
report.json" ] || fail "MCBO_MOVING=0001: $(ls "$single")"
step "three paths, as LUMIR; PSMAReg's five are refused"
paths=$(new paths); run "$data" "$paths" --user 23456:23456 -- \
  /input/imagesTr/ReMIND2Reg_0001_0000.nii.gz /input/imagesTr/ReMIND2Reg_0001_0001.nii.gz /output/field.nii.gz > /dev/null
[ -s "$paths/field.nii.gz" ] || fail "three paths: no field"
status=0; run "$data" "$(new five)" -- a b c d e > /dev/null 2> "$lab/five.err" || status=$?
if [ $status -ne 1 ] || ! grep -q "PSMAReg's five" "$lab/five.err"; then fail "five paths: status $status, $(cat "$lab/five.err")"; fi

step "jobs of grand-challenge.org: two images and three, at the start"
label=$($engine image inspect "$image" --format '{{index .Config.Labels "org.grand-challenge.api-method"}}')
[ "$label" = exec ] || fail "expected the label of the API method to be exec, found '$label'"
jobs=$lab/jobs
"$python" - "$data/imagesTr" "$jobs" <<'P'
import json, sys, uuid
from pathlib import Path
import SimpleITK as sitk
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # of what MetaImage cannot store of NIfTI
images, jobs = map(Path, sys.argv[1:])
for job, slugs in {
    "two": {"intraoperative-ultrasound": 0, "preoperative-mri": 1},
    "three": {"preop-t2": 2, "preop-cet1": 1, "intraop-us": 0},
    "other": {"scan-a": 0, "scan-b": 2},
}.items():
    entries = []
    for slug, channel in slugs.items():
        path = jobs / job / "images" / slug / f"{uuid.uuid4()}.mha"
        path.parent.mkdir(parents=True)
        sitk.WriteImage(sitk.ReadImage(str(images / f"ReMIND2Reg_0001_000{channel}.nii.gz")), str(path))
        socket = {"slug": slug, "relative_path": f"images/{slug}", "kind": "Image", "super_kind": "Image"}
        entries.append({"socket": socket, "file": None, "image": {"name": "scan.mha"}, "value": None, "pk": len(entries)})
    (jobs / job / "inputs.json").write_text(json.dumps(entries))
P
# same_field MHA NIFTI: a field of the site, in mm, LPS, is a displacement of the challenge, in voxels
same_field() { "$python" - "$@" <<'P' || fail "expected the same field in $1 and $2"
import sys
import nibabel
import numpy as np
import SimpleITK as sitk
field = sitk.ReadImage(sys.argv[1])
image = nibabel.load(sys.argv[2])
u = np.asarray(image.dataobj)
assert field.GetSize() == u.shape and field.GetNumberOfComponentsPerPixel() == 1, field.GetSize()
ras = u @ image.affine[:3, :3].T
assert np.abs(ras).max() > 0.5
assert np.allclose(sitk.GetArrayFromImage(field).T, ras * (-1, -1, 1), rtol=0, atol=1e-5)
P
}
two=$(new two); run "$jobs/two" "$two" --user 34567:34567 -e HOME=/nonexistent > /dev/null
both=$(new both); run "$jobs/three" "$both" -e MCBO_CHALLENGE_FORMAT=1 > "$lab/three.log" 2> "$lab/three.err"
[ ! -s "$lab/three.err" ] || fail "expected nothing on stderr, found $(cat "$lab/three.err")"
name=images/displacement-field/output.mha
same_field "$both/$name" "$outside/disp_0001_0000_0001_0002.nii.gz"
same_field "$both/$name" "$both/displacement.nii.gz"
same_field "$two/$name" "$paths/field.nii.gz"
status=0; run "$jobs/other" "$(new unclear)" > /dev/null 2> "$lab/unclear.err" || status=$?
if [ $status -ne 1 ] || [ "$(wc -l < "$lab/unclear.err")" -ne 1 ] || ! grep -q "'scan-a' (no role)" "$lab/unclear.err"; then
  fail "unclear slugs: status $status, $(cat "$lab/unclear.err")"
fi
echo "the fields are those of the same images as a dataset; unclear slugs: $(cut -c 1-150 "$lab/unclear.err")"

step "jobs over HTTP, in images made of this one"
mkdir "$lab/invoke"
cat > "$lab/invoke/Dockerfile" <<D
FROM $image
LABEL org.grand-challenge.api-method="invoke"
ENV GRAND_CHALLENGE_COMPONENT_API_METHOD="invoke"
ENV MCBO_SOCKETS='{"scan-a": "fixed", "scan-b": "T2", "my-field": "displacement"}'
D
$engine build -t "$image-invoke" "$lab/invoke" > "$lab/invoke.log" 2>&1 || { cat "$lab/invoke.log"; fail "build of the image for jobs over HTTP"; }
asked=$(new asked); served=mcbo-served-$$
$engine run -d --name "$served" "${limits[@]}" --user 45678:45678 -v "$jobs/other:/input:ro" -v "$asked:/output" "$image-invoke" > /dev/null
cat > "$lab/ask.py" <<'P'
import http.client, sys, time
for attempt in range(600):
    connection = http.client.HTTPConnection("localhost", 4743, timeout=300)
    try:
        connection.request(*sys.argv[1:])
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
answer = connection.getresponse()
print(answer.status, answer.read().decode().strip())
P
ask() { timeout 400 $engine exec "$served" python -c "$(cat "$lab/ask.py")" "$@"; }
[ "$(ask GET /health)" = "200 ready" ] || fail "GET /health"
for _ in 1 2; do
  answer=$(ask POST /invoke)
  [ "$answer" = "201 /output/images/my-field/output.mha" ] || fail "POST /invoke: $answer"
done
[ "$(ask GET /invoke)" = "405 /invoke: expected POST, got GET" ] || fail "GET /invoke: $(ask GET /invoke)"
before=$SECONDS; $engine stop -t 10 "$served" > /dev/null; took=$((SECONDS - before))
status=$($engine inspect "$served" --format '{{.State.ExitCode}}'); $engine rm "$served" > /dev/null
[ "$status" = 143 ] && [ $took -lt 10 ] || fail "expected status 143 within 10 s, found $status after $took s"
alone=$(new alone); run "$jobs/other" "$alone" -e MCBO_SOCKETS='{"scan-a": "ultrasound", "scan-b": "moving"}' > /dev/null
cmp "$asked/images/my-field/output.mha" "$alone/$name" || fail "expected the same field over HTTP as at the start"
echo "two jobs over HTTP, the same field as at the start; status 143 after $took s"

step "demo"
shown=$(new shown); run "$data" "$shown" -e MCBO_PRESET=cascade -- --demo > "$lab/demo.log"
grep "mean TRE" "$lab/demo.log"
step "scores by the image's own evaluation"
run "$data" "$plain" --entrypoint python -- -m evaluation score --dataset "/input/$json" --predictions /output --output /output/metrics.json

evaluation_container "$data" "$outside"

step "refused: the same sentence and status as outside"
# refuse NAME [program arguments]: the broken data set $lab/bad, inside and outside
refuse() {
  local inside=0 without=0 out; out=$(new "refused-$1"); new "refused-$1-outside" > /dev/null
  run "$lab/bad" "$out" -- "${@:2}" > /dev/null 2> "$lab/inside.err" || inside=$?
  "$python" process.py --input "$lab/bad" --output "$lab/refused-$1-outside" --device cpu "${@:2}" \
    > /dev/null 2> "$lab/without.err" || without=$?
  sed -i "s#$lab/bad#/input#g" "$lab/without.err"
  if [ $inside -eq 0 ] || [ $inside -ne $without ] || ! diff "$lab/inside.err" "$lab/without.err"; then fail "refused input '$1': $inside, outside $without"; fi
  echo "  $1: status $inside: $(head -1 "$lab/inside.err" | cut -c 1-150)"
  rm -rf "$lab/bad"
}
for kind in 4d empty cut nan inf constant shape missing tiny rgb; do
  cp -r "$lab/small" "$lab/bad"
  "$python" - "$lab/bad/imagesTr/ReMIND2Reg_0002_0001.nii.gz" $kind <<'P'
import sys
from pathlib import Path
import nibabel
import numpy as np
path, kind = Path(sys.argv[1]), sys.argv[2]
image = nibabel.load(path)
array, whole = np.asarray(image.dataobj).copy(), path.read_bytes()
path.unlink()
if kind == "empty":
    path.touch()
elif kind == "cut":
    path.write_bytes(whole[: len(whole) // 2])
elif kind != "missing":
    array[0, 0, 0] = {"nan": np.nan, "inf": np.inf}.get(kind, 0)
    array = {"4d": np.stack([array] * 2, -1), "constant": np.zeros_like(array), "shape": array[1:], "tiny": array[:4]}.get(kind, array)
    if kind == "rgb":
        array = np.zeros(array.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)
P
  refuse $kind --case 0002
done
cp -r "$lab/small" "$lab/bad"; sed -i 's/"name": "ReMIND2Reg"/"name": "Brains"/' "$lab/bad/$json"; refuse unknown-task
cp -r "$lab/small" "$lab/bad"; echo '{' > "$lab/bad/$json"; refuse broken-json
mkdir "$lab/bad"; refuse nothing
status=0; timeout 100 $engine run --rm "${limits[@]}" -v "$data:/input:ro" "$image" 2> "$lab/unwritable.err" > /dev/null || status=$?
[ $status -eq 1 ] && [ "$(wc -l < "$lab/unwritable.err")" -eq 1 ] || fail "unwritable output: status $status, $(cat "$lab/unwritable.err")"
echo "  unwritable output: status 1: $(cat "$lab/unwritable.err")"

step "SIGTERM"
stopped=$(new stopped)
$engine run -d --name "mcbo-stopped-$$" "${limits[@]}" -v "$data:/input:ro" -v "$stopped:/output" "$image" > /dev/null
for _ in $(seq 120); do [ -e "$stopped/report.json" ] && break; sleep 0.5; done
before=$SECONDS; $engine stop -t 10 "mcbo-stopped-$$" > /dev/null; took=$((SECONDS - before))
status=$($engine inspect "mcbo-stopped-$$" --format '{{.State.ExitCode}}'); $engine rm "mcbo-stopped-$$" > /dev/null
[ "$status" = 143 ] && [ $took -lt 10 ] || fail "expected status 143 within 10 s, found $status after $took s"
run "$data" "$stopped" > "$lab/resumed.log"
grep -q "done before" "$lab/resumed.log" || fail "expected the next run to go on"
same "$outside" "$stopped"
early=$(new early)
$engine run -d --name "mcbo-early-$$" "${limits[@]}" -v "$data:/input:ro" -v "$early:/output" "$image" > /dev/null
sleep 0.7; $engine stop -t 10 "mcbo-early-$$" > /dev/null
status=$($engine inspect "mcbo-early-$$" --format '{{.State.ExitCode}}'); $engine rm "mcbo-early-$$" > /dev/null
[ "$status" = 143 ] || fail "expected status 143 while it starts, found $status"
echo "status 143 after $took s, and while it starts; the next run went on and wrote the same fields"

step "SIGKILL, ten times"
killed=$(new killed)
for round in $(seq 10); do
  $engine run -d --name "mcbo-killed-$$" "${limits[@]}" -v "$data:/input:ro" -v "$killed:/output" "$image" --overwrite > /dev/null
  if [ $((round % 2)) -eq 0 ]; then
    sleep "$((2 + RANDOM % 12)).$((RANDOM % 10))"
  else  # in mid-write
    for _ in $(seq 1500); do compgen -G "$killed/.partial-*disp*" > /dev/null && break; sleep 0.01; done
  fi
  $engine kill -s KILL "mcbo-killed-$$" > /dev/null 2>&1 || true
  $engine rm -f "mcbo-killed-$$" > /dev/null
  for file in "$killed"/disp_*.nii.gz; do [ ! -e "$file" ] || gzip -t "$file" || fail "round $round: $file is cut off"; done
  [ ! -e "$killed/report.json" ] || "$python" -m json.tool "$killed/report.json" > /dev/null || fail "round $round: report"
done
run "$data" "$killed" > /dev/null
same "$outside" "$killed"
echo "unfinished files of killed runs, under other names: $(find "$killed" -name '.partial-*' | wc -l)"
echo "no file was ever cut off; the last run wrote the same fields"

if [ -n "${EXPORT:-}" ]; then
  step "export"
  if [ $engine = podman ]; then podman save --format docker-archive "$image"; else docker save "$image"; fi | gzip -1 > "$EXPORT"
  ls -l "$EXPORT"
fi
peak=$("$python" -c "
import json
cases = json.load(open('$plain/report.json'))['cases'].values()
print(max(stage['peak_memory_mb'] for case in cases for stage in case['stages'].values()))")
step "passed: image $((size / 1000000)) MB, peak memory of a 44×40×48 case $peak MB"
