#!/usr/bin/env bash
# docs/results/cache.md, accuracy: bash benchmarks/cache_accuracy.sh DATA TEACHER OUT
# DATA: a parquet data set (10 000 of its training images are taken); TEACHER: a run that was pretrained on it.
# Live teacher, exact replay of 1, 4 and 16 stored views, and the paper's cache (rows of the centre crop, the student's
# own random crops); three seeds; every step resumes or is skipped. About two minutes a run on one Zen 3 core.
set -euo pipefail
data=$1 teacher=$2 out=$3
export OMP_NUM_THREADS=1
here=$(dirname "$0")
[ -e "$out/data/train.parquet" ] || python "$here/sample_images.py" "$data" "$out/data" 10000
for views in 1 4 16; do
  compress-ssl embed --encoder "$teacher" --data "$out/data" --views $views --view.scale 0.2 1 --workers 0 --out "$out/views_$views"
done
students=()
train() { # name seed teacher options…
  local folder=$out/$1_$2 seed=$2 taught=$3 resume=()
  shift 3
  students+=("$folder")
  if [ -e "$folder/report.html" ]; then return; fi
  if [ -e "$folder/config.yaml" ]; then resume=(--resume); fi
  compress-ssl distill --teacher "$taught" --student compress/resnet10_small_w8_s2 --data "$out/data" --out "$folder" \
    --objective compress_1q --objective.bank-size 4096 --epochs 20 --validate-every-epochs 20 --workers 0 --seed "$seed" \
    --optimizer.learning-rate 0.1 --schedule.name cosine "$@" "${resume[@]}"
}
for seed in 0 1 2; do
  train live $seed "$teacher" --view.scale 0.2 1
  for views in 1 4 16; do train views_$views $seed "$out/views_$views"; done
  train centre $seed "$out/views_16" --stored.student-view random --view.scale 0.2 1
done
compress-ssl evaluate "teacher=$teacher" "${students[@]}" --data "$out/data" --workers 0 --out "$out/results" \
  --metrics nearest_neighbour neighbour_overlap
python "$here/mean_scores.py" "$out/results"
