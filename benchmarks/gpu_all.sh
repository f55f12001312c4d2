#!/bin/bash
# The kernels' figures on one GPU, a line of JSON each: bash benchmarks/gpu_all.sh [--dry-run] [STEP…]
#
# Steps, what matters most first: head_check, head_time, train, precision, memory, quantise, swap, tests. One that fails has a line with its
# exit status and costs only its own. With OUT set, the lines are in $OUT/gpu_all.jsonl and all output in $OUT/gpu_all.log.
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
    local name=$1 limit=$2 begin=$SECONDS code
    shift 2
    timeout -k 5 "$limit" "$@" >"$out/step.log" 2>&1
    code=$?
    { echo "== $name: $*"; cat "$out/step.log"; } >>"$out/gpu_all.log"
    { grep '^{' "$out/step.log"
      echo "{\"step\": \"$name\", \"status\": $code, \"seconds\": $((SECONDS - begin))}"; } | tee -a "$out/gpu_all.jsonl"
    [ $code = 0 ] || tail -15 "$out/step.log" | cut -c1-400
}

# Qwen3-8B's shape with as many layers as the GPU has room for beside their Adam moments.
layers=18
memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
[ "${memory:-0}" -gt 120000 ] || layers=8

train() { # NAME OPTION=VALUE…: the same shape with these
    local name=$1
    shift
    step "$name" 60 "$PYTHON" -m benchmarks.gpu_train --shape qwen3-8b --layers $layers --steps 2 $dry attention=torch "$@"
}

for name in ${*:-head_check head_time train precision memory quantise swap tests}; do
    case $name in
    head_check) step head_check 60 "$PYTHON" -m benchmarks.gpu_head check $dry ;;
    head_time) step head_time 60 "$PYTHON" -m benchmarks.gpu_head time $dry ;;
    train) step train 90 "$PYTHON" -m benchmarks.gpu_train --shape qwen3-8b --layers $layers --steps 2 --compare-head $dry attention=torch ;;
    precision)
        train tensorwise fp8=tensorwise bf16_layers=1
        train blockwise fp8=blockwise ;;
    memory)
        train moments gradients=bfloat16 moments=bfloat16
        train asleep asleep=true
        train block recompute=full recompute_method=block recompute_layers=1
        train host optimizer_on_host=0.5 ;;
    quantise) step quantise 60 "$PYTHON" -m benchmarks.gpu_quantise $dry ;;
    swap) step swap 60 "$PYTHON" -m benchmarks.gpu_swap --repeats 5 $dry ;;
    tests) step tests 60 "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu/test_kernels_on_gpu.py ;;
    *) echo "no step $name" ;;
    esac
done
