#!/bin/bash
# name: memory
# title: Memory keeps what is written to it
# limit: 60m
# programs: stress-ng jq
# destructive: no
# alone: yes
# part: a memory module
# result: tested_mib integer
# result: seconds integer
# result: corrected_errors integer
# result: uncorrected_errors integer

set -u
seconds=${RACKHAND_SECONDS:-900}
# Most of what is available; the rest is for the system that runs this, which is in memory too.
available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
tested=$((available * 80 / 100))
if [ "$tested" -lt 16 ]; then
    echo "only $available MiB are available"
    exit 77
fi
errors() { cat /sys/devices/system/edac/mc/mc*/"$1"_count 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'; }
corrected=$(errors ce) uncorrected=$(errors ue)
workers=$(nproc)
report=$(stress-ng --vm "$workers" --vm-bytes "$((tested / workers))M" --vm-keep --vm-method all --verify \
    --timeout "${seconds}s" --metrics-brief 2>&1)
status=$?
echo "$report"
if [ "$status" -eq 0 ] && [ "$(awk '$2 == "metrc:" && $4 == "vm" { print $5 }' <<< "$report")" -eq 0 ]; then
    echo "no part of memory was written and read back within $seconds seconds"
    exit 2
fi
corrected=$(($(errors ce) - corrected)) uncorrected=$(($(errors ue) - uncorrected))
findings=()
if [ "$status" -ne 0 ]; then
    findings+=("memory did not read back as it was written: stress-ng ended with $status")
fi
for count in /sys/devices/system/edac/mc/mc*/dimm*/dimm_[cu]e_count; do
    [ -e "$count" ] || continue
    if [ "$(cat "$count")" -gt 0 ]; then
        findings+=("module $(cat "${count%/*}/dimm_label"): $(cat "$count") errors ($(basename "$count" _count))")
    fi
done
if [ "$uncorrected" -gt 0 ] && [ ${#findings[@]} -eq 0 ]; then
    findings+=("$uncorrected errors that could not be corrected")
fi
jq -n --argjson tested "$tested" --argjson seconds "$seconds" --argjson ce "$corrected" --argjson ue "$uncorrected" \
    '{tested_mib: $tested, seconds: $seconds, corrected_errors: $ce, uncorrected_errors: $ue,
      findings: $ARGS.positional}' --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
