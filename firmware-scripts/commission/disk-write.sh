#!/bin/bash
# name: disk-write
# title: Every disk keeps what is written to it
# limit: 60m
# programs: fio jq blkdiscard
# devices: disk
# destructive: yes
# alone: yes
# part: a disk, its cable or its backplane
# result: disks integer
# result: written_mib integer

set -u
findings=() disks=0 written=0
for disk in $(lsblk --nodeps --noheadings --output NAME,TYPE | awk '$2 == "disk" { print $1 }'); do
    case $disk in loop*|zram*|ram*|sr*|fd*) continue ;; esac
    disks=$((disks + 1))
    name="$disk ($(lsblk --nodeps --noheadings --output MODEL,SERIAL "/dev/$disk" | xargs))"
    # 256 blocks of 1 MiB, from all over the disk, written with sums and read back.
    if fio --name=write --filename="/dev/$disk" --rw=randwrite --bs=1M --ioengine=libaio --iodepth=4 --direct=1 \
        --io_size=256M --verify=crc32c --do_verify=1 --verify_fatal=1 --allow_mounted_write=0; then
        written=$((written + 256))
    else
        findings+=("disk $name did not keep what was written to it")
    fi
    # Nothing of this is left for who gets the machine next.
    blkdiscard --force --zeroout "/dev/$disk" || findings+=("disk $name could not be cleared afterwards")
done
if [ "$disks" -eq 0 ]; then
    echo "there is no disk"
    exit 77
fi
jq -n --argjson disks "$disks" --argjson written "$written" \
    '{disks: $disks, written_mib: $written, findings: $ARGS.positional}' --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
