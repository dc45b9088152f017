#!/bin/bash
# name: smart
# title: Disks say of themselves that they are well
# limit: 10m
# programs: smartctl jq
# devices: disk
# destructive: no
# alone: no
# part: a disk
# result: disks integer
# result: told integer
# result: oldest_hours integer

set -u
disks=0 told=0 oldest=0 findings=()
for disk in $(lsblk --nodeps --noheadings --output NAME,TYPE | awk '$2 == "disk" { print $1 }'); do
    case $disk in loop*|zram*|ram*|sr*|fd*) continue ;; esac
    disks=$((disks + 1))
    # Bits of its status say what it found (smartctl(8)); what it prints says the rest.
    log=$(smartctl --json=c --health --attributes --log=error "/dev/$disk")
    passed=$(jq 'if .smart_status? then .smart_status.passed else null end' <<< "$log")
    name="$disk ($(jq -r '"\(.model_name // "model not told") \(.serial_number // "")"' <<< "$log" | xargs))"
    if [ "$passed" = null ]; then
        echo "$name: does not tell"
        continue
    fi
    told=$((told + 1))
    hours=$(jq '.power_on_time.hours // 0' <<< "$log")
    [ "$hours" -gt "$oldest" ] && oldest=$hours
    echo "$name: passed $passed, $hours h"
    [ "$passed" = true ] || findings+=("disk $name says that it is failing")
    # Attributes that a disk does not come back from: reallocated, pending and uncorrectable sectors.
    while IFS=$'\t' read -r id label raw; do
        findings+=("disk $name: $raw of $label (attribute $id)")
    done < <(jq -r '.ata_smart_attributes.table[]? | select((.id == 197 or .id == 198) and .raw.value > 0)
        | [.id, .name, .raw.value] | @tsv' <<< "$log")
done
if [ "$told" -eq 0 ]; then
    echo "no disk of $disks tells how it is"
    exit 77
fi
jq -n --argjson disks "$disks" --argjson told "$told" --argjson oldest "$oldest" \
    '{disks: $disks, told: $told, oldest_hours: $oldest, findings: $ARGS.positional}' \
    --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
