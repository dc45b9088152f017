#!/bin/sh
# Tells what this machine is, as JSON, for `rackhand machine adopt-running --facts FILE`.
#
# It reads /sys, /proc and what `ip` says; it changes nothing, needs nothing but a POSIX shell with the usual
# tools, and no network. Run it as root: serial numbers and the UUID are shown to nobody else.

set -u
LC_ALL=C
export LC_ALL

# Where the system's files are; another place only to be tried out.
root=${RACKHAND_FACTS_ROOT:-}

# The first line of a file without what surrounds it; nothing when it cannot be read.
line() {
    [ -r "$1" ] || return 0
    head -n 1 "$1" 2>/dev/null | tr -d '\000-\037\177' | sed 's/^ *//; s/ *$//'
}

# A text as a JSON string; what is not ASCII is left out.
text() {
    printf '"%s"' "$(printf '%s' "$1" | tr -cd '\040-\176' | cut -c 1-128 | sed 's/[\\"]/\\&/g')"
}

# What boards say that were never given a serial number.
serial() {
    case $1 in
    'To be filled by O.E.M.' | 'To Be Filled By O.E.M.' | 'Default string' | 'System Serial Number' | \
        'Not Specified' | 'None' | '0' | '0123456789' | '................') ;;
    *) printf '%s' "$1" ;;
    esac
}

dmi=$root/sys/class/dmi/id

macs=
for path in "$root"/sys/class/net/*; do
    # Without a device it is a bridge, a bond, a tunnel.
    [ -e "$path/device" ] || continue
    # A BMC's own card, on USB, is not always there.
    case $(readlink -f "$path/device") in */usb*) continue ;; esac
    [ "$(line "$path/type")" = 1 ] || continue
    # A card in a bond shows the bond's address.
    mac=$(line "$path/bonding_slave/perm_hwaddr")
    [ -n "$mac" ] || mac=$(line "$path/address")
    case $mac in
    ??:??:??:??:??:??) [ "$mac" = 00:00:00:00:00:00 ] || macs="$macs${macs:+, }\"$mac\"" ;;
    esac
done

disks=
for path in "$root"/sys/block/*; do
    name=${path##*/}
    case $name in loop* | ram* | zram* | dm-* | md* | sr* | fd* | nbd* | drbd* | rbd*) continue ;; esac
    [ "$(line "$path/removable")" = 1 ] && continue
    sectors=$(line "$path/size")
    case $sectors in '' | 0 | *[!0-9]*) continue ;; esac
    number=$(line "$path/device/serial")
    [ -n "$number" ] || number=$(line "$path/serial")
    if [ -z "$number" ] && [ -r "$path/device/vpd_pg80" ]; then
        # SPC-5 §7.7.17: four bytes, then the serial number.
        number=$(tail -c +5 "$path/device/vpd_pg80" 2>/dev/null | tr -d '\000-\040\177-\377')
    fi
    wwn=$(line "$path/wwid")
    [ -n "$wwn" ] || wwn=$(line "$path/device/wwid")
    # Vendors' own names (t10.) repeat model and serial number.
    case $wwn in eui.0000000000000000) wwn= ;; naa.* | eui.* | uuid.*) ;; *) wwn= ;; esac
    disk="{\"name\": $(text "$name"), \"model\": $(text "$(line "$path/device/model")"), \"serial\": $(text "$number")"
    [ -z "$wwn" ] || disk="$disk, \"wwn\": $(text "$wwn")"
    disks="$disks${disks:+, }$disk, \"size\": $((sectors * 512))}"
done

# Those of the machine itself: not of containers' bridges, and not those that routers advertise.
seen=
if command -v ip >/dev/null 2>&1; then
    for address in $(ip -o addr show scope global 2>/dev/null |
        awk '$0 !~ / (temporary|dynamic mngtmpaddr)/ && $2 !~ /^(docker|br-|veth|virbr|cni|flannel|cali|lxc)/ { sub("/.*", "", $4); print $4 }'); do
        seen="$seen${seen:+, }\"$address\""
    done
fi

firmware=bios
[ -d "$root/sys/firmware/efi" ] && firmware=uefi

threads=$(grep -c '^processor[[:space:]]*:' "$root/proc/cpuinfo" 2>/dev/null)
cpu=$(sed -n 's/^model name[[:space:]]*: *//p' "$root/proc/cpuinfo" 2>/dev/null | head -n 1)
memory=$(awk '/^MemTotal:/ { printf "%.0f", $2 * 1024 }' "$root/proc/meminfo" 2>/dev/null)
number=$(serial "$(line "$dmi/product_serial")")
uuid=$(line "$dmi/product_uuid")

printf '{\n'
printf '  "serial": %s,\n' "$(text "$number")"
case $uuid in
????????-????-????-????-????????????) printf '  "uuid": %s,\n' "$(text "$uuid")" ;;
esac
printf '  "vendor": %s,\n' "$(text "$(line "$dmi/sys_vendor")")"
printf '  "product": %s,\n' "$(text "$(line "$dmi/product_name")")"
printf '  "firmware": "%s",\n' "$firmware"
printf '  "cpu": %s,\n' "$(text "$cpu")"
printf '  "threads": %s,\n' "${threads:-0}"
printf '  "memory": %s,\n' "${memory:-0}"
printf '  "macs": [%s],\n' "$macs"
printf '  "disks": [%s],\n' "$disks"
printf '  "seen": [%s]\n' "$seen"
printf '}\n'

if [ -z "$number" ] && [ -z "$uuid" ]; then
    echo 'neither a serial number nor a UUID can be read: run this as root' >&2
fi
