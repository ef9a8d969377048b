#!/usr/bin/env bash
# The README's figures of schedules that are closer to the flow than the 50-step run is.
# Everything goes into the folder where it is run.
set -euo pipefail

python -m meancache.tiny.captions calibration > calibration.txt
python -m meancache.tiny.captions held-out | head -24 > held-out.txt
python -m jobs.calibrate --model tiny --steps 100 --prompts calibration.txt --seeds 1 --output fine
python -m jobs.solve --graph fine/graph --budgets 8,10,12,15 --reference-steps 300 --output fine/schedules
python -m jobs.evaluate --model tiny --steps 100 --prompts held-out.txt --seeds 2 --schedules fine/schedules \
  --reference-steps 300 --output fine/evaluation
