#!/bin/bash
# Runs the training binary on every host of a Cloud TPU slice:
#
#   launchers/tpu_vm.sh NAME ZONE --config configs/smaug.py:base --config.mesh=v5e_256 \
#       --config.input.path=DATASET --config.input.tokenizer=TOKENIZER --workdir /mnt/shared/runs/base
#
# Before, once: the repository in ~/vlp_jax on every host and `make tpu` there (the same gcloud command with
# --command="cd vlp_jax && make tpu"), and a file system that all hosts see for --workdir and the data (Filestore); or a
# copy of the data and the tokenizer on each and --workdir=gs://BUCKET/runs/base (once on each: .venv/bin/pip install
# -e .[gcs]).
# Interrupting this command does not stop the hosts; `... --command="pkill -TERM -f vlp_jax.train"` saves and stops.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: launchers/tpu_vm.sh NAME ZONE FLAGS-OF-vlp_jax.train" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
# Quoted for the shell of the hosts; with --distributed=on JAX finds the others from the slice's metadata.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd vlp_jax && .venv/bin/python -m vlp_jax.train --distributed=on $(printf '%q ' "$@")"
