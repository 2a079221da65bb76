#!/usr/bin/env bash
# Starts a training run, goes on with it, or does nothing if it is finished: what a scheduler may call again and again.
# Usage: run_or_resume.sh RUN_FOLDER CONFIG [flags of `python -m lowbit train`]
set -euo pipefail
run=$1
shift
if [ -f "$run/result.json" ]; then
    echo "the run in $run is finished"
    exit 0
fi
resume=()
if [ -f "$run/config.json" ]; then
    resume=(--resume)
fi
exec python -m lowbit train "$@" --config.run_folder="$run" ${resume[@]+"${resume[@]}"}
