#!/bin/bash
# name: disk-read
# title: Every disk can be read, all over
# limit: 60m
# programs: fio jq
# devices: disk
# destructive: no
# alone: yes
# part: a disk, its cable or its backplane
# result: disks integer
# result: slowest_mib_per_second number
# result: throughput texts

set -u
seconds=${RACKHAND_SECONDS:-60}
findings=() throughput=() disks=0 slowest=
for disk in $(lsblk --nodeps --noheadings --output NAME,TYPE | awk '$2 == "disk" { print $1 }'); do
    case $disk in loop*|zram*|ram*|sr*|fd*) continue ;; esac
    disks=$((disks + 1))
    name="$disk ($(lsblk --nodeps --noheadings --output MODEL,SERIAL "/dev/$disk" | xargs))"
    # Read-only in each way there is: fio is told so, and is given no other pattern.
    report=$(fio --name=read --readonly --filename="/dev/$disk" --rw=randread --bs=1M --iodepth=8 --ioengine=libaio \
        --direct=1 --runtime="$seconds" --time_based --output-format=json 2>&1)
    if [ $? -ne 0 ]; then
        echo "$report" | tail -3
        findings+=("disk $name cannot be read")
        continue
    fi
    rate=$(echo "$report" | sed -n '/^{/,$p' | jq '.jobs[0].read.bw / 1024 | floor')
    echo "$name: $rate MiB/s"
    throughput+=("$name: $rate MiB/s")
    if [ -z "$slowest" ] || [ "$rate" -lt "$slowest" ]; then slowest=$rate; fi
done
if [ "$disks" -eq 0 ]; then
    echo "there is no disk"
    exit 77
fi
jq -n --argjson disks "$disks" --argjson slowest "${slowest:-0}" --argjson count "${#throughput[@]}" \
    '{disks: $disks, slowest_mib_per_second: $slowest, throughput: $ARGS.positional[:$count],
      findings: $ARGS.positional[$count:]}' --args -- "${throughput[@]}" "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
