#!/bin/bash
# name: nvme
# title: NVMe drives took their firmware
# limit: 60m
# programs: nvme jq
# destructive: no
# alone: yes
# part: an NVMe drive
# result: drives integer

# NVM Express Base Specification 2.0, Firmware Image Download and Firmware Commit. The file goes into a slot
# that the drive chooses. With the argument `activate` (commit action 3) it is in force at once, else (commit
# action 1) from the next reset of the controller on, as at a start of the machine.
set -u
activate=no
for argument in "$@"; do
    case $argument in
        activate) activate=yes ;;
        *) echo "unknown argument $argument: there is \`activate\`"; exit 77 ;;
    esac
done
drives=0 findings=()
declare -A seen=()
for part in $RACKHAND_PARTS; do
    # nvme0n1 is a namespace of the controller nvme0, which has the firmware.
    controller=${part%n[0-9]*}
    [ -z "${seen[$controller]:-}" ] || continue
    seen[$controller]=yes
    drives=$((drives + 1))
    echo "$controller: sends $RACKHAND_FILE"
    if ! nvme fw-download "/dev/$controller" --fw="$RACKHAND_FILE"; then
        findings+=("drive $controller did not take the file")
        break
    fi
    [ $activate = yes ] && action=3 || action=1
    # Slot 0: the drive chooses one.
    said=$(nvme fw-commit "/dev/$controller" --slot=0 --action=$action 2>&1)
    status=$?
    echo "$controller: $said (status $status)"
    if [ $status -eq 0 ]; then
        continue
    elif [[ $said != *Success* ]]; then
        findings+=("drive $controller did not commit the file: $said")
        break
    elif [ $activate = yes ]; then
        # Taken, and in force from a reset on only.
        nvme reset "/dev/$controller" || findings+=("drive $controller was not reset")
    fi
done
jq -n --argjson drives "$drives" '{drives: $drives, findings: $ARGS.positional}' --args -- "${findings[@]}" \
    > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
