#!/usr/bin/env bash
# The tests, and what a step and `fit` cost, on a GPU. In an environment with the
# project (`pip install -e ".[test-all]"`) and JAX and PyTorch for the GPU:
#
#     bash benchmarks/gpu.sh OUTPUT            # within ten minutes
#     bash benchmarks/gpu.sh OUTPUT --suite    # all tests in place of some
#     bash benchmarks/gpu.sh OUTPUT --quick    # sees that it runs, without a GPU
#
# OUTPUT gets the results as JSON, and figures. A backend that finds no GPU is
# named, and the exit status is 1. No GPU has been measured yet: please send
# what you find.
set -euo pipefail

output=${1:?"Usage: bash benchmarks/gpu.sh OUTPUT [--suite | --quick]"}
option=${2:-}
mkdir -p "$output"
output=$(cd "$output" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tests=(
    tests/test_adamax_clipped.py tests/test_gradient_statistics.py
    tests/test_numerical_faults.py tests/test_skip_nonfinite.py
    tests/test_spikes.py
)
benchmark=()
case $option in
"") ;;
--suite) tests=(tests) ;;
--quick)
    tests=(tests/test_update_rule.py)
    benchmark=(--quick)
    ;;
*)
    echo "The second argument must be --suite or --quick. Received: $option" >&2
    exit 2
    ;;
esac

missed=()
for backend in jax torch; do
    export KERAS_BACKEND=$backend
    device=$(cd benchmarks && python -c \
        'from _harness import machine; print(machine.accelerator() or "")')
    echo "=== $backend: ${device:-no GPU}"
    if [[ -z $device ]]; then
        missed+=("$backend finds no GPU")
        [[ $option == --quick ]] || continue
    fi
    python -m pytest -q "${tests[@]}" || missed+=("tests on $backend")
    python benchmarks/optimizer_step.py --rates 1 --workloads one many large \
        "${benchmark[@]}" --output "$output" ||
        missed+=("optimizer_step on $backend")
    python benchmarks/fit.py "${benchmark[@]}" --output "$output" ||
        missed+=("fit on $backend")
done
if ((${#missed[@]})); then
    printf '%s\n' "${missed[@]}" >&2
    exit 1
fi
