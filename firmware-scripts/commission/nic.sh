#!/bin/bash
# name: nic
# title: Network cards with a link run at full duplex and without errors
# limit: 90s
# programs: ethtool ip jq
# devices: nic
# destructive: no
# alone: no
# part: a network card, its cable or transceiver, or the switch's port
# result: cards integer
# result: linked integer
# result: links texts

set -u
counter() { cat "/sys/class/net/$1/statistics/$2" 2>/dev/null || echo 0; }
errors() { echo $(($(counter "$1" rx_crc_errors) + $(counter "$1" rx_frame_errors) + $(counter "$1" tx_carrier_errors))); }
declare -A before
cards=() linked=0 links=() findings=()
for path in /sys/class/net/*; do
    [ -e "$path/device" ] && cards+=("${path##*/}")
done
for card in "${cards[@]}"; do before[$card]=$(errors "$card"); done
sleep 20
for card in "${cards[@]}"; do
    mac=$(cat "/sys/class/net/$card/address")
    if [ "$(cat "/sys/class/net/$card/carrier" 2>/dev/null)" != 1 ]; then
        links+=("$card ($mac): no link")
        continue
    fi
    linked=$((linked + 1))
    # Virtual cards tell neither.
    speed=$(ethtool "$card" 2>/dev/null | awk -F': ' '/Speed:/ { print $2 }')
    duplex=$(ethtool "$card" 2>/dev/null | awk -F': ' '/Duplex:/ { print $2 }')
    links+=("$card ($mac): ${speed:-speed not told}, ${duplex:-duplex not told}")
    [ "$duplex" = Half ] && findings+=("card $card ($mac) runs at half duplex")
    new=$(($(errors "$card") - before[$card]))
    [ "$new" -gt 0 ] && findings+=("card $card ($mac) had $new errors on its line within twenty seconds")
done
[ "$linked" -eq 0 ] && findings+=("no network card has a link")
printf '%s\n' "${links[@]}"
jq -n --argjson cards "${#cards[@]}" --argjson linked "$linked" --argjson count "${#links[@]}" \
    '{cards: $cards, linked: $linked, links: $ARGS.positional[:$count], findings: $ARGS.positional[$count:]}' \
    --args -- "${links[@]}" "${findings[@]}" > "$RACKHAND_RESULT"
[ ${#findings[@]} -eq 0 ]
