#!/usr/bin/env bash
# The README's tables: fitted schedules, the paper's and other methods against full runs.
# Everything goes into the folder where it is run.
set -euo pipefail

python -m meancache.tiny.captions calibration > calibration.txt
python -m meancache.tiny.captions held-out | head -24 > held-out.txt
python -m jobs.calibrate --model tiny --prompts calibration.txt --seeds 1 --output table
python -m jobs.solve --graph table/graph --budgets 6,8,10,12,15 --output table/schedules
python -m jobs.evaluate --model tiny --prompts held-out.txt --seeds 2 --schedules table/schedules \
  --graph table/graph --baselines --reference-steps 300 --output table/evaluation
