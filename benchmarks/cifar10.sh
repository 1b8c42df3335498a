#!/usr/bin/env bash
# docs/results/cifar10.md, made again: bash benchmarks/cifar10.sh CIFAR10_FOLDER OUT
# CIFAR10_FOLDER holds train.parquet and test.parquet (Hugging Face image layout); every step resumes or is skipped.
set -euo pipefail
data=$1 out=$2
run() { # verb folder options…: start it, continue it, or leave it if it is finished
  local verb=$1 folder=$2
  shift 2
  if [ -e "$folder/finished" ]; then return; fi
  local resume=()
  if [ -e "$folder/config.yaml" ]; then resume=(--resume); fi
  compress-ssl "$verb" --data "$data" --out "$folder" "$@" "${resume[@]}" && touch "$folder/finished"
}
teacher=compress/resnet10_small_w32_s2 student=compress/resnet10_small_w8_s2
compress=(--teacher "$out/teacher" --student "$student" --epochs 6 --validate-every-epochs 1 --workers 1
  --optimizer.learning-rate 0.1 --schedule.name cosine --view.scale 0.2 1 --objective.bank-size 16384)
run pretrain "$out/teacher" --encoder "$teacher" --epochs 14 --validate-every-epochs 1 --optimizer.learning-rate 2e-3 --workers 1
run distill "$out/student_1q" --objective compress_1q "${compress[@]}"
run distill "$out/student_2q" --objective compress_2q --objective.momentum 0.99 "${compress[@]}"
compress-ssl evaluate teacher="$out/teacher" student_1q="$out/student_1q" student_2q="$out/student_2q" \
  student_random="$student@random" --size 32 --data "$data" --out "$out/results"
compress-ssl report "$out/results" "$out/teacher" "$out/student_1q" "$out/student_2q" --out "$out/report.html"
