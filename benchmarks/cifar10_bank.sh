#!/usr/bin/env bash
# docs/results/temperature.md, made again: bash benchmarks/cifar10_bank.sh CIFAR10_FOLDER TEACHER_RUN OUT
# TEACHER_RUN is the teacher of benchmarks/cifar10.sh; about two minutes a run on one core, finished ones are skipped.
set -euo pipefail
data=$1 teacher=$2 out=$3
mkdir -p "$out"
compress-ssl embed --encoder "$teacher" --data "$data" --dtype float32 --out "$out/positive"
[ -e "$out/centred" ] || python "$(dirname "$0")/centred_table.py" "$out/positive" "$out/centred"
run() { # folder table options…
  local folder=$out/$1 table=$out/$2
  shift 2
  [ -e "$folder/results.json" ] && return
  rm -rf "$folder"
  compress-ssl distill --teacher "$table" --student compress/resnet10_small_w8_s2 --data "$data" --out "$folder" \
    --objective compress_2q --objective.momentum 0.99 --objective.bank-size 16384 --epochs 1.5 \
    --validate-every-epochs 3 --workers 1 --optimizer.learning-rate 0.1 --schedule.name cosine --view.scale 0.2 1 "$@"
}
for table in positive centred; do
  for temperature in 0.02 0.04 0.07 0.1; do run "${table}_$temperature" "$table" --objective.temperature "$temperature"; done
  for share in 0.02 0.05; do run "${table}_auto_$share" "$table" --objective.temperature auto --objective.perplexity "$share"; done
done
for seed in 0 1 2; do
  for dtype in float32 bfloat16 int8; do run "${dtype}_$seed" positive --objective.bank-dtype "$dtype" --seed "$seed"; done
done
python "$(dirname "$0")/perplexity.py" "$out/positive" "$out/centred"
for run in "$out"/*/metrics.jsonl; do echo "$(basename "$(dirname "$run")") $(tail -n 1 "$run")"; done
