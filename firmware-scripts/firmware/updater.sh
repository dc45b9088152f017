#!/bin/bash
# name: updater
# title: The maker's own program has updated its parts
# limit: 60m
# programs: jq
# destructive: no
# alone: yes
# part: the part that the program updates
# result: status integer

# The file is the maker's updater for Linux, a program that has the firmware in it, and is run with the
# manifest's arguments.
set -u
chmod 0700 "$RACKHAND_FILE" || exit 77
"$RACKHAND_FILE" "$@"
status=$?
echo "the updater ended with $status"
findings=()
[ $status -eq 0 ] || findings+=("the updater ended with $status")
jq -n --argjson status "$status" '{status: $status, findings: $ARGS.positional}' --args -- "${findings[@]}" \
    > "$RACKHAND_RESULT"
[ $status -eq 0 ]
