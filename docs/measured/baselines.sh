#!/usr/bin/env bash
# Every method on the embedded model at two settings, and whether predicted PSNR holds. Takes an hour or more of
# two cores, or minutes of a GPU (add --device cuda). Everything goes into the folder where it is run.
set -euo pipefail

python -m meancache.tiny.training.table --shift 7 --workers 2 --output shift-7.json
python -m meancache.tiny.training.table --shift 15 --workers 2 --output shift-15.json
python -m meancache.tiny.training.coverage --output coverage.json
