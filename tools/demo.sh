#!/usr/bin/env bash
# The main job on generated data, from nothing: set up, pretrain a CE backbone, train Mask R-CNN with it, and report box
# and mask AP. Run it again at any time: what is finished is kept, what was interrupted goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
trap 'printf "\nInterrupted. Run the same command again to go on.\n" >&2; exit 130' INT TERM

pretrain=configs/shapes/ce-resnet18_shapes.py
detector=configs/shapes/mask-rcnn_ce-r18_fpn_shapes.py
pretrain_epochs=6 detector_epochs=3  # as the two configs say
work=work_dirs/shapes
val=data/shapes/annotations/val.json

python3 tools/setup_env.py
python=.venv/bin/python
export PYTHONWARNINGS=ignore  # of upstream's, about packages that nothing here needs

say() { printf '\n\033[1m%s\033[0m  (%dm%02ds)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
# mmengine's log begins with hundreds of lines about the machine and the config; the whole of it lies in the work folder.
progress() { sed -un '/Epoch(/s/.* - INFO - /  /p'; }  # unbuffered: line by line as it comes
finished() { grep -qsF "epoch_$2.pth" "$1/last_checkpoint"; }  # written after the checkpoint itself

# Results of another recipe are not this one's, but perhaps somebody's.
recipe=$(cat configs/_base_/ce.py "$pretrain" "$detector" tools/demo.sh - <<< "$PWD" | cksum)
if [ -e "$work" ] && [ "$(cat "$work/recipe" 2>/dev/null || true)" != "$recipe" ]; then
    earlier=$work.$(date +%Y%m%d-%H%M%S)
    mv "$work" "$earlier"
    echo "$work held the results of another recipe; they are in $earlier now"
fi
mkdir -p "$work"
printf '%s\n' "$recipe" > "$work/recipe"

say "1/5 Shapes: pictures of circles, crosses, rings, squares, stars and triangles"
"$python" tools/make_shapes.py data/shapes --train 800 --val 80 --crops 4500

say "2/5 Pretraining CE-ResNet-18 to name single shapes"
finished $work/pretrain $pretrain_epochs || "$python" tools/train.py "$pretrain" --work-dir $work/pretrain --resume | progress

say "3/5 Training Mask R-CNN with it"
finished $work/detector $detector_epochs || "$python" tools/train.py "$detector" --work-dir $work/detector --resume | progress

say "4/5 Finding the shapes in pictures that were not trained on"
[ -e $work/results.pkl ] || {
    "$python" tools/test.py "$detector" $work/detector/epoch_$detector_epochs.pth --work-dir $work/test --out $work/unfinished.pkl | progress
    mv $work/unfinished.pkl $work/results.pkl
}

say "5/5 The report"
"$python" tools/analysis/plot_training.py $work/detector --out $work/training.png
"$python" tools/analysis/draw_predictions.py $val data/shapes/val $work/results.pkl \
    --out $work/predictions.png --config "$detector"
"$python" tools/eval_coco.py $val $work/results.pkl --config "$detector" --out $work/metrics.json
printf '\nRecorded runs of this chain, with BN and with CE, in points (docs/detection/results.md):\n'
sed -n '/| seeds /,/^$/p' docs/detection/results.md | grep -E "^\| (epochs|$detector_epochs) "
printf '%s\n' "" "Figures: $work/metrics.json" "Training curve: $work/training.png" "Pictures: $work/predictions.png"
say "Done"
