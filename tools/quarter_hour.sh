#!/usr/bin/env bash
# The paper's table from an adapted SmolLM2-135M on a machine with a large GPU, without network, DVC or MLflow, in a quarter of an hour:
# unpacks what was brought there in parts, runs tools/pipeline.py within its budget, and leaves everything that is worth keeping in
# archives. docs/adapt.md says how the parts are made.
#
#   tools/quarter_hour.sh PARTS OUT MINUTES [options of tools/pipeline.py]
#
# PARTS: SmolLM2.gguf.* (or the converted model in data/input already), rows.npy.xz, alpaca_data.json.xz, *_questions.json(l)
# The variable WORK names another folder than the repository for data/input, build and the results.
set -uo pipefail
[ $# -ge 3 ] || { echo "error: give PARTS OUT MINUTES" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$2"
parts=$(cd "$1" && pwd) && out=$(cd "$2" && pwd) && cd "${WORK:-$root}" || exit 2
minutes=$3
shift 3
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" DLM_TRACKING=off TOKENIZERS_PARALLELISM=true PYTHONUNBUFFERED=1
folder=build/quarter_hour model=data/input/smollm2-135m-instruct
mkdir -p data/input

{
    if [ ! -d "$model" ]; then
        cat "$parts"/SmolLM2.gguf.* > data/input/SmolLM2.part || exit 2
        mv data/input/SmolLM2.part data/input/SmolLM2.gguf
        python3 -m dlm.cli convert data/input/SmolLM2.gguf "$model" --causal --dtype bfloat16 || exit 2
    fi
    for file in "$parts"/*; do
        name=$(basename "$file" .npy.xz)
        case "$file" in
            *.npy.xz) [ -e "data/input/$name.npy" ] || { python3 -c 'import lzma, shutil, sys
with lzma.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as rows:
    shutil.copyfileobj(packed, rows)' "$file" data/input/rows.part && mv data/input/rows.part "data/input/$name.npy"; } || exit 2 ;;
            *.json | *.jsonl | *.json.xz) [ -e "data/input/$name" ] || cp "$file" "data/input/$name" || exit 2 ;;
        esac
    done
    echo "unpacked after $SECONDS s"
    run=(python3 "$root/tools/pipeline.py" --profile smollm2 --folder "$folder" "$@")
    # A fault on the GPU spoils the process for all later stages: another one does what is missing, once.
    "${run[@]}" --minutes "$minutes" --resume || "${run[@]}" --minutes "$(python3 -c "print(max($minutes - $SECONDS / 60, 0))")" --resume
    status=$?
    echo "ended after $SECONDS s"
    exit $status
} 2>&1 | tee "$out/log.txt"
status=${PIPESTATUS[0]}

[ -f "$folder/params.yaml" ] || exit 2  # nothing has run, and the log says why
shopt -s nullglob
results=$(python3 -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["report"]["results"])' "$folder/params.yaml")
tar -cJf "$out/results.tar.xz" "$results"
tar -cJf "$out/answers.tar.xz" --ignore-failed-read "$folder"/build/{answers,ablation} "$folder"/build/models/reference/answers.jsonl
tar -cJf "$out/figures.tar.xz" --ignore-failed-read --exclude='*.safetensors' --exclude=tokenizer.json "$folder"/params.yaml "$folder"/state.json \
    "$folder"/build/{selection,evaluation,speed,sweeps} "$folder"/build/data/{,training/}*.json "$folder"/build/models
ls -l "$out"
exit "$status"
