#!/usr/bin/env bash
# Can a CE Mask R-CNN learn real pictures at all? Trains one on eight pictures of COCO, from the backbone that tools/demo.sh
# pretrained on shapes, and reports box and mask AP on the same eight pictures. The record goes to docs/eight_pictures.
#     bash tools/learn_eight_pictures.sh data/coco/annotations/instances_train2017.json data/coco/train2017
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: bash tools/learn_eight_pictures.sh ANNOTATIONS PICTURES" >&2
    exit 2
fi
annotations=$(realpath -- "$1") pictures=$(realpath -- "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python3 tools/setup_env.py

python=.venv/bin/python
config=configs/coco/mask-rcnn_ce-r18_fpn_8pictures_coco.py
work=work_dirs/eight_pictures
subset=$work/annotations.json
record=docs/eight_pictures
mkdir -p $work $record
"$python" tools/subset_coco.py "$annotations" $subset --pictures 8
"$python" tools/train.py $config --work-dir $work/train --resume --cfg-options \
    train_dataloader.dataset.dataset.data_prefix.img="$pictures" val_dataloader.dataset.data_prefix.img="$pictures"
"$python" tools/test.py $config "$work/train/$(basename -- "$(cat $work/train/last_checkpoint)")" --work-dir $work/test --out $work/results.pkl \
    --cfg-options test_dataloader.dataset.data_prefix.img="$pictures"
"$python" tools/analysis/plot_training.py $work/train --out $record/training.png
"$python" tools/analysis/draw_predictions.py $subset "$pictures" $work/results.pkl --out $record/predictions.jpg --images 8 \
    --config $config
"$python" tools/eval_coco.py $subset $work/results.pkl --config $config --out $record/metrics.json
