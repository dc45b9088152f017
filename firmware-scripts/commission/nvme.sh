#!/bin/bash
# name: nvme
# title: NVMe drives report no critical warning and have life left
# limit: 5m
# programs: nvme jq
# devices: nvme
# destructive: no
# alone: no
# part: an NVMe drive
# result: drives integer
# result: most_used_percent integer
# result: media_errors integer

set -u
drives=0 most=0 media=0 findings=()
for drive in /dev/nvme[0-9] /dev/nvme[0-9][0-9]; do
    [ -c "$drive" ] || continue
    drives=$((drives + 1))
    name="$drive ($(nvme id-ctrl "$drive" --output-format=json | jq -r '"\(.mn) \(.sn)"' | xargs))"
    if ! log=$(nvme smart-log "$drive" --output-format=json); then
        findings+=("drive $name does not tell its health")
        continue
    fi
    # NVM Express Base Specification, SMART / Health Information: the bits of Critical Warning.
    warning=$(jq '.critical_warning | if type == "object" then .value else . end' <<< "$log")
    used=$(jq '.percent_used // .percentage_used // 0' <<< "$log")
    spare=$(jq '.avail_spare // 100' <<< "$log")
    threshold=$(jq '.spare_thresh // 0' <<< "$log")
    errors=$(jq '.media_errors // 0 | tonumber' <<< "$log")
    echo "$name: warning $warning, $used % used, $spare % spare, $errors media errors"
    [ "$used" -gt "$most" ] && most=$used
    media=$((media + errors))
    (( warning & 1 )) && findings+=("drive $name: spare blocks are used up ($spare %)")
    (( warning & 2 )) && findings+=("drive $name: too hot or too cold")
    (( warning & 4 )) && findings+=("drive $name: errors degrade its reliability")
    (( warning & 8 )) && findings+=("drive $name: can only be read any more")
    (( warning & 16 )) && findings+=("drive $name: its backup of volatile memory failed")
    [ "$used" -ge 100 ] && findings+=("drive $name: $used % of its life is used")
    [ "$spare" -lt "$threshold" ] && findings+=("drive $name: $spare % spare, below its threshold of $threshold %")
done
if [ "$drives" -eq 0 ]; then
    echo "there is no NVMe drive"
    exit 77
fi
jq -n --argjson drives "$drives" --argjson most "$most" --argjson media "$media" \
    '{drives: $drives, most_used_percent: $most, media_errors: $media, findings: $ARGS.positional}' \
    --args -- "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
