#!/bin/bash
# name: clock
# title: The kernel's clock and the mainboard's keep the same time
# limit: 3m
# programs: jq
# destructive: no
# alone: no
# part: the mainboard: its crystals, its clock and the battery of that
# result: source text
# result: seconds integer
# result: drift_ppm integer

set -u
rtc=/sys/class/rtc/rtc0/since_epoch
source=unknown
read -r source < /sys/devices/system/clocksource/clocksource0/current_clocksource
if [ ! -e "$rtc" ]; then
    echo "there is no clock on the mainboard that the kernel knows"
    exit 77
fi

# Microseconds of the kernel's clock at the mainboard's next tick, and what that clock says then. Within the
# shell: a program would take longer to start than what is measured.
tick() {
    local before now end=$((SECONDS + 5))
    read -r before < "$rtc"
    while read -r now < "$rtc" && [ "$now" = "$before" ]; do
        if [ "$SECONDS" -gt "$end" ]; then
            told=
            return 1
        fi
    done
    at=${EPOCHREALTIME/[.,]/} told=$now
}

findings=() drift=0 passed=0
if tick; then
    at1=$at told1=$told
    sleep 60
    if tick; then
        passed=$((told - told1))
        drift=$(((at - at1 - passed * 1000000) / passed))
        echo "clock source $source, off by $drift parts in a million over $passed s of the mainboard's clock"
        # A crystal is good for 100; a tick is seen within some milliseconds, on a busy machine.
        if [ "${drift#-}" -gt 2000 ]; then
            findings+=("the clocks of kernel ($source) and mainboard differ by $drift parts in a million")
        fi
    fi
fi
if [ -z "$told" ]; then
    findings+=("the mainboard's clock stands still")
fi
jq -n --arg source "$source" --argjson seconds "$passed" --argjson drift "$drift" \
    '{source: $source, seconds: $seconds, drift_ppm: $drift, findings: $ARGS.positional}' \
    --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
