#!/bin/sh
# The table of docs/quality.md: bits, method, true bits a weight, perplexity.
#
#   tools/quality.sh MODEL SCORED CALIBRATION [APL_FFI]
#
# MODEL is a folder or file with float weights. SCORED is the text that is scored, its first 200,000 bytes; CALIBRATION is the text
# that the model reads when it is calibrated, no part of what is scored. APL_FFI is the executable.
set -eu
model=$1 scored=$2 read=$3 bin=${4:-target/release/apl-ffi}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The number behind a key of a flat piece of JSON.
number() { sed -n "s/.*\"$1\": *\\([0-9.]*\\).*/\\1/p" | head -n 1; }

perplexity() { "$bin" perplexity "$@" "$scored" --bytes 200000 --json | number perplexity; }

echo "| bits | group | zero points | method | bits a weight | perplexity |"
echo "|---|---|---|---|---|---|"
printf '| 32 | | | none | 32 | %.3f |\n' "$(perplexity "$model" --bits 32)"
row() {
    bits=$1 group=$2 zero=$3 method=$4
    shift 4
    [ "$zero" = no ] || set -- "$@" --asymmetric
    size=$("$bin" convert "$model" --bits "$bits" --group "$group" --out "$folder/m" --json "$@" 2>/dev/null | number bits_a_weight)
    printf '| %s | %s | %s | %s | %.2f | %.3f |\n' "$bits" "$group" "$zero" "$method" "$size" "$(perplexity "$folder/m")"
    rm -rf "$folder/m"
}
for format in "8 32 no" "4 32 no" "4 16 no" "4 32 yes" "4 16 yes" "2 32 no" "2 16 no" "2 16 yes" "2 8 no" "1 32 no" "1 16 no" "1 8 no"; do
    # shellcheck disable=SC2086
    set -- $format
    row "$@" nearest --method nearest
    [ "$1" = 1 ] || row "$@" search --method search
    row "$@" calibrated --calibrate "$read"
    row "$@" tuned --calibrate "$read" --tune 400
done
