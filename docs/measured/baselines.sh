#!/usr/bin/env bash
# Every method on the embedded model at two settings, and whether predicted PSNR holds. Takes an hour or more of
# two cores, or minutes of a GPU (--device cuda). Everything goes into the folder where it is run.
set -euo pipefail

for shift in 7 15; do
  python -m meancache.tiny.training.table --shift "$shift" --workers 2 --output "shift-$shift.json" "$@"
done
python -m meancache.tiny.training.coverage --output coverage.json "$@"
