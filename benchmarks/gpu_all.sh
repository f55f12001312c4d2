#!/bin/bash
# Every figure of one GPU in at most eight minutes: bash benchmarks/gpu_all.sh [--dry-run] [STEP…]
#
# Steps, what matters most first: attention, numerics, head_check, head_time, train, precision, swap, quantise, sglang,
# sglang_swap, memory, quickstart, tests. Rows take Transformer Engine's attention where it runs, else torch's.
# One that fails costs only its own row; one for which no time is left is left out, and says so. With OUT set, $OUT has
# gpu_all.md (a table, with the device's name), gpu_all.json, gpu_all.jsonl (line by line) and gpu_all.log (all output).
# --dry-run takes tiny shapes and runs anywhere: every step's Python up to what needs the GPU.
cd "$(dirname "$0")/.." || exit
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
dry=
[ "$1" = --dry-run ] && dry=--dry-run && shift
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
: >"$out/gpu_all.jsonl" >"$out/gpu_all.log"

step() { # NAME SECONDS COMMAND…
    local name=$1 limit=$2 begin=$SECONDS code left=$((470 - SECONDS))
    shift 2
    if [ $left -lt 15 ]; then
        echo "{\"step\": \"$name\", \"status\": \"left out\", \"seconds\": 0}" | tee -a "$out/gpu_all.jsonl"
        return
    fi
    [ "$limit" -le $left ] || limit=$left
    timeout -k 5 "$limit" "$@" >"$out/step.log" 2>&1
    code=$?
    if [ $code = 0 ] && grep -q '[0-9] skipped' "$out/step.log" && ! grep -q '[0-9] passed' "$out/step.log"; then
        code='"skipped"'
    fi
    { echo "== $name: $*"; cat "$out/step.log"; } >>"$out/gpu_all.log"
    { grep '^{' "$out/step.log" || echo "{\"said\": \"$(tail -1 "$out/step.log" | tr -d '\\"' | cut -c1-200)\"}"
      echo "{\"step\": \"$name\", \"status\": $code, \"seconds\": $((SECONDS - begin))}"; } | tee -a "$out/gpu_all.jsonl"
    [ "$code" = 0 ] || tail -15 "$out/step.log" | cut -c1-400
}

# Qwen3-8B's shape with as many layers as the GPU has room for beside their Adam moments.
layers=18
memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
[ "${memory:-0}" -gt 120000 ] || layers=8

attention=torch
train() { # NAME OPTION=VALUE…: the same shape with these
    local name=$1
    shift
    step "$name" 60 "$PYTHON" -m benchmarks.gpu_train --shape qwen3-8b --layers $layers --steps 2 $dry attention=$attention "$@"
}

tested() { # NAME SECONDS ARGUMENT…: tests, each of which says why it is skipped where it is
    local name=$1 limit=$2
    shift 2
    step "$name" "$limit" "$PYTHON" -m pytest -rs -p no:cacheprovider "$@"
}

[ -z "$dry" ] || small="--layers 1 --hidden 128 --vocabulary 256 --fp8"
steps="attention numerics head_check head_time train precision swap quantise sglang sglang_swap memory quickstart tests"
for name in ${*:-$steps}; do
    case $name in
    attention)
        step attention 60 "$PYTHON" -m benchmarks.gpu_attention $dry
        grep -q '"Transformer Engine": [0-9]' "$out/gpu_all.jsonl" && attention=transformer_engine ;;
    numerics) step numerics 60 "$PYTHON" -m benchmarks.gpu_numerics --attention $attention $small ;;
    head_check) step head_check 60 "$PYTHON" -m benchmarks.gpu_head check $dry ;;
    head_time) step head_time 60 "$PYTHON" -m benchmarks.gpu_head time $dry ;;
    train) step train 90 "$PYTHON" -m benchmarks.gpu_train --shape qwen3-8b --layers $layers --steps 2 --compare-head $dry attention=$attention ;;
    precision)
        train tensorwise fp8=tensorwise bf16_layers=1
        train blockwise fp8=blockwise
        train fp8_recompute fp8=blockwise recompute=full
        train fp8_weights fp8=blockwise fp8_weights=true ;;
    memory)
        train moments gradients=bfloat16 moments=bfloat16
        train asleep asleep=true
        train block recompute=full recompute_method=block recompute_layers=1
        train host optimizer_on_host=0.5 ;;
    quantise) step quantise 60 "$PYTHON" -m benchmarks.gpu_quantise $dry ;;
    swap) step swap 60 "$PYTHON" -m benchmarks.gpu_swap --repeats 5 $dry ;;
    quickstart) tested quickstart 120 tests/gpu/test_train_on_gpu.py -k quickstart ;;
    sglang_swap) step sglang_swap 150 "$PYTHON" -m benchmarks.gpu_sglang_swap --ways pull,handles $dry ;;
    sglang) tested sglang 150 tests/gpu/test_train_on_gpu.py -k "swapped and cuda_ipc" --maxfail=1 ;;
    tests) tested tests 60 tests/gpu/test_kernels_on_gpu.py tests/gpu/test_cuda_ipc_on_gpu.py ;;
    *) echo "no step $name" ;;
    esac
done
"$PYTHON" -m benchmarks.gpu_table "$out"
