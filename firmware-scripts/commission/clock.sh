#!/bin/bash
# name: clock
# title: The machine's clock keeps time
# limit: 90s
# programs: jq
# destructive: no
# alone: no
# part: the mainboard's clock and its battery
# result: source text
# result: drift_ppm integer
# result: hardware_clock boolean

set -u
# The kernel's own clock against the processor's raw counter, over half a minute: both come from crystals
# on the mainboard, and one that runs away is seen against the other.
source=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource 2>/dev/null || echo unknown)
now() { awk '{ printf "%d", $1 * 100 }' /proc/uptime; }
wall() { date +%s%N; }
up1=$(now) wall1=$(wall)
sleep 30
up2=$(now) wall2=$(wall)
drift=$(awk -v up=$((up2 - up1)) -v wall=$((wall2 - wall1)) \
    'BEGIN { printf "%d", (wall / 1e9 - up / 100) / (up / 100) * 1e6 }')
hardware=false
findings=()
if [ -e /sys/class/rtc/rtc0/since_epoch ]; then
    before=$(cat /sys/class/rtc/rtc0/since_epoch) || before=
    sleep 3
    after=$(cat /sys/class/rtc/rtc0/since_epoch) || after=
    if [ -n "$before" ] && [ "${after:-0}" -gt "$before" ]; then
        hardware=true
    else
        findings+=("the mainboard's clock stands still: $before, three seconds later ${after:-nothing}")
    fi
fi
# What uptime is printed in, a hundredth, is 333 ppm of thirty seconds at each end.
if [ "${drift#-}" -gt 2000 ]; then
    findings+=("the clock ($source) is off by $drift parts in a million")
fi
echo "clock source $source, off by $drift parts in a million"
jq -n --arg source "$source" --argjson drift "$drift" --argjson hardware "$hardware" \
    '{source: $source, drift_ppm: $drift, hardware_clock: $hardware, findings: $ARGS.positional}' \
    --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
