#!/usr/bin/env bash
# docs/results/teachers.md, made again: bash benchmarks/teachers.sh CIFAR10_FOLDER OUT
# CIFAR10_FOLDER holds train.parquet and test.parquet (Hugging Face image layout); every step resumes or is skipped.
# Equal budgets are equal multiply-adds. A picture costs, in forward passes of one view (a backward pass is two):
# simclr 2 views x 3 = 6; moco_v2 3 + 1 of the slow copy = 4; swav (2 + 4 local ones of a quarter) x 3 = 9;
# dino 9 + 2 of the slow copy = 11. So 6 epochs of SimCLR are 9, 4 and 3.3 of the others.
set -euo pipefail
data=$1 out=$2
run() { # method epochs options…
  local folder=$out/$1
  if [ -e "$folder/finished" ]; then return; fi
  local resume=()
  if [ -e "$folder/config.yaml" ]; then resume=(--resume); fi
  compress-ssl pretrain --data "$data" --out "$folder" --encoder compress/resnet10_small_w32_s2 --method "$1" \
    --epochs "$2" --batch-size 256 --validate-every-epochs 1 --workers 1 "${@:3}" "${resume[@]}"
  touch "$folder/finished"
}
run simclr 6 --optimizer.learning-rate 2e-3
run moco_v2 9 --optimizer.learning-rate 2e-3 --method.momentum 0.99 --method.bank-size 4096
run swav 4 --optimizer.learning-rate 1e-3 --method.prototypes 300 --method.local.views 4
run dino 3.3 --optimizer.learning-rate 1e-3 --method.momentum 0.99 --method.head-norm --method.local.views 4
compress-ssl evaluate simclr="$out/simclr" moco_v2="$out/moco_v2" swav="$out/swav" dino="$out/dino" \
  random=compress/resnet10_small_w32_s2@random --size 32 --data "$data" --out "$out/results"
