#!/bin/bash
# name: cpu
# title: All processors compute correctly under full load, and their sensors stay below their limits
# limit: 30m
# programs: stress-ng jq
# destructive: no
# alone: yes
# part: a processor, its cooling, or a power supply
# result: processors integer
# result: seconds integer
# result: warmest_celsius number
# result: throttled integer

set -u
seconds=${RACKHAND_SECONDS:-600}
processors=$(nproc)
warmest() { cat /sys/class/hwmon/hwmon*/temp*_input 2>/dev/null | sort -n | tail -1; }
throttled() { cat /sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'; }
before=$(throttled)
stress-ng --cpu "$processors" --cpu-method all --verify --timeout "${seconds}s" --metrics-brief &
load=$!
peak=0
while kill -0 "$load" 2>/dev/null; do
    now=$(warmest)
    if [ "${now:-0}" -gt "$peak" ]; then peak=$now; fi
    sleep 2
done
wait "$load"
status=$?
findings=()
if [ "$status" -ne 0 ]; then
    findings+=("a processor computed wrongly, or could not be loaded: stress-ng ended with $status")
fi
for input in /sys/class/hwmon/hwmon*/temp*_input; do
    [ -e "$input" ] || continue
    limit=${input%_input}_crit
    now=$(cat "$input" 2>/dev/null) || continue
    highest=$(cat "$limit" 2>/dev/null) || continue
    label=$(cat "${input%_input}_label" 2>/dev/null || cat "${input%/*}/name" 2>/dev/null || echo "$input")
    if [ "$highest" -gt 0 ] && [ "$now" -ge "$highest" ]; then
        findings+=("$label: $((now / 1000)) °C under load, its limit is $((highest / 1000)) °C")
    fi
done
throttles=$(($(throttled) - before))
if [ "$throttles" -gt 0 ]; then
    findings+=("processors were slowed down $throttles times for heat: look at fans and heat sinks")
fi
jq -n --argjson processors "$processors" --argjson seconds "$seconds" --argjson peak "${peak:-0}" \
    --argjson throttled "$throttles" \
    '{processors: $processors, seconds: $seconds, warmest_celsius: ($peak / 1000), throttled: $throttled,
      findings: $ARGS.positional}' --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
