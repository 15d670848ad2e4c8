# Attacks the emulated board of boot-deb.sh beside a victim: attack_board. That script sources this file.
# Everything comes from outside, through the broker: messages, and functions that are pushed. Tested is what only a real kernel
# has: the limits of the unit, and a service that must not end. `make attack` has most of these attacks on this machine, where they
# are faster and the daemon has less memory.
# shellcheck shell=bash
# shellcheck disable=SC2154 # Variables of boot-deb.sh.

# Seconds of each attack, and pause between messages of the victim: the emulated board carries several times as many.
attack_secs=${SEDGE_ATTACK_SECONDS:-15} victim_pause=0.1
# Limit of each of the four parts of the store on the board, which an attack reaches within seconds.
store_bytes=$((16 << 20))
# Twice the four parts, for pages that are free or half full, the log, one commit, and compiled functions.
folder_max=$((2 * 4 * store_bytes + (32 << 20)))
# Longest wait of the victim for 99 of 100 messages, in ms, where it waits less than a fifth of it without an attack.
wait_max=1000

# Prints what board.sh does last, on the board: it prints the state of the service every two seconds.
watch_service() {
    cat <<'sh'
group=/sys/fs/cgroup/system.slice/sedge.service
while true; do
    main=$(systemctl show --property MainPID,NRestarts --value sedge | tr '\n' ' ')
    anonymous=$(sed -n 's/^anon //p' $group/memory.stat)
    kills=$(sed -n 's/^oom_kill //p' $group/memory.events)
    folder=$(du --summarize --bytes /var/lib/sedge | cut -f 1)
    echo "service: $main$anonymous $(cat $group/memory.peak) $(cat $group/memory.max) $kills $folder"
    sleep 2
done
sh
}
# The lines above: main process, restarts, anonymous memory, peak, limit, processes killed for memory, bytes of the data folder.
states() { tr -d '\r' <"$work/console" | sed -nE 's/.*service: (([0-9]+ ){6}[0-9]+)$/\1/p'; }

# Pushes a function of the tests under another name, which hears NAME/#: push_as NAME GUEST LIMITS
push_as() {
    local folder=$work/functions/$1 publish=echo
    # Two copies of `attack` publish to each other.
    [ "$1" != echo ] || publish=attack
    mkdir -p "$folder"
    cp "tests/guests/$2/$2.wasm" "$folder/$1.wasm"
    {
        sed -E "/^\[limits\]/,\$d; s,^name = .*,name = \"$1\",; s,^subscribe = .*,subscribe = [\"$1/#\"],; s,^publish = .*,publish = [\"$publish/#\"]," \
            "tests/guests/$2/function.toml"
        printf '[limits]\n%b\n[trial]\nmessages = 1\nsecs = 1\n' "$3"
    } >"$folder/function.toml"
    "$sedge" push "$folder" --node board --code "$code" >&2 || fail "the push of $1 failed"
    # Until a message succeeded, a failure would remove the function.
    publish "$1/first" -m nothing
}

# publish TOPIC ARGUMENT...
publish() { mosquitto_pub -p "$port" -V 5 -q 1 -t "$@"; }
# Publishes lines of standard input: publish_lines TOPIC ARGUMENT...
publish_lines() { publish "$@" -l; }

# Runs a command for each message of an attack, at its rate, with the number of the message behind it: flood COMMAND...
flood() {
    local number batch=$((rate < 10 ? 1 : rate / 10))
    for number in $(seq $((attack_secs * rate))); do
        "$@" "$number"
        [ $((number % batch)) != 0 ] || sleep "$(awk "BEGIN { print $batch / $rate }")"
    done
}

# One message each, and its number. Topics that fail are paused, so those that are to fail differ.
long_topic() { publish "attack/$1/$large" -m 'state 1'; }
state() { publish "attack/$1" -m 'state 60000'; }
spin() { publish "attack/$(($1 % 16))" -m 'spin 100000'; }
long_spin() { publish "slow/$(($1 % 8))" -m 'spin 100000'; }
memory() { publish "misbehave/memory/$1" -m memory; }
crash() {
    local ways=(trap recurse stack loop output outputs log)
    publish "misbehave/crash/$1" -m "${ways[$1 % 7]}"
}
noise() { publish "sedge/board/deploy/f$1" -m "{\"payload\":\"$1\",\"signatures\":[{\"keyid\":\"\\n<3>forged\"}]}"; }

properties() { flood echo | publish_lines count/evil "${many_properties[@]}"; }
slow_properties() { flood echo 'spin 300' | publish_lines slow/1 "${large_properties[@]}"; }
payloads() { publish attack/payload -f "$work/payload" --repeat $((attack_secs * rate)) --repeat-delay "$(awk "BEGIN { print 1 / $rate }")"; }
control_characters() { flood echo alert 10000 | publish_lines attack/1; }
alerts() { flood echo alert 10 | publish_lines attack/2; }
keys() { flood echo key 60000 | publish_lines attack/3; }
log() { flood echo log 32 | publish_lines attack/4; }
# Both functions run until the fan-out of the first message is used up.
fan_out() { flood fan; }
fan() { publish attack/5 -m 'fan 64'; }

# Publishes a number and the time until the file `victim.runs` is gone. `count` adds how many messages it had.
victim() {
    local number=0
    while [ -e "$work/victim.runs" ]; do
        number=$((number + 1))
        printf '%d:%s\n' $number "$EPOCHREALTIME"
        sleep $victim_pause
    done | tee "$work/victim.sent" | publish_lines count/victim
}
# Whether everything that the victim was sent until now is upstream: victim_has NUMBER
victim_has() { awk -F '[\t: ]' -v last="$1" '$2 == last { found = 1 } END { exit !found }' "$work/victim"; }
victim_sent() { wc -l <"$work/victim.sent"; }
# The wait from publishing to the record upstream that PERCENT of the messages sent between two times do not exceed, in ms:
# victim_wait PERCENT FROM TO
victim_wait() {
    awk -F '[\t: ]' -v from="$2" -v to="$3" '!seen[$2]++ && $3 >= from && $3 < to { printf "%d\n", ($1 - $3) * 1000 }' "$work/victim" |
        sort -n | awk -v percent="$1" '{ wait[NR] = $1 } END { at = int(NR * percent / 100) + 1; print wait[at < NR ? at : NR] }'
}

# Attacks, waits until the victim has everything, and prints what the attack did: strike WHAT PER_SECOND COMMAND...
# Sets how long the victim waits.
strike() {
    local what=$1 rate=$2 from=$EPOCHREALTIME before to half
    shift 2
    before=$(states | wc -l)
    "$@" || fail "$what could not be sent"
    to=$EPOCHREALTIME
    until_true 180 "the victim's records after $what" victim_has "$(victim_sent)"
    # The state of the service is printed every two seconds.
    sleep 3
    half=$(victim_wait 50 "$from" "$to") wait=$(victim_wait 99 "$from" "$to")
    states | tail -n +$((before + 1)) | awk -v before="| $what | $((rate * attack_secs)) | $half | $wait" '
        { if ($3 > memory) memory = $3; if ($7 > folder) folder = $7 }
        END { printf "%s | %.0f | %.0f |\n", before, memory / 1048576, folder / 1048576 }'
}
# Attacks again if the victim waited too long: a busy computer can stop the emulator for a second.
attack() {
    strike "$@"
    [ "$wait" -ge $wait_max ] || return 0
    strike "$1, again" "${@:2}"
    [ "$wait" -lt $wait_max ] || slow+=" $1: $wait ms, $((wait / (alone > 0 ? alone : 1))) times as long;"
}

attack_board() {
    local guest large many_properties=() large_properties=() from alone wait first last slow=
    for guest in count attack misbehave; do "$sedge" build "tests/guests/$guest" >&2; done
    push_as count count 'timeout_ms = 100'
    push_as attack attack 'fuel = 10_000_000_000'
    push_as echo attack ''
    push_as slow attack 'timeout_ms = 1000\nfuel = 10_000_000_000'
    push_as misbehave misbehave 'fuel = 10_000_000_000\nmemory_bytes = 67_108_864'
    printf -v large '%060000d' 0
    for _ in $(seq 20000); do many_properties+=(-D publish user-property k v); done
    for _ in 1 2 3 4; do large_properties+=(-D publish user-property p "${large:0:50000}"); done
    head -c 250000 /dev/zero >"$work/payload"

    # Nobody reads the alerts of the attacks.
    kill "$upstream"
    publish none -i upstream -n
    touch "$work/victim.runs" "$work/victim.sent"
    mosquitto_sub -p "$port" -V 5 -q 1 -i victim -t upstream/count/victim -F '%U\t%p' >"$work/victim" &
    victim &
    # Code that runs for the first time is slow in an emulator.
    sleep 10
    from=$EPOCHREALTIME
    sleep 30
    alone=$(victim_wait 99 "$from" "$EPOCHREALTIME")
    first=$(states | tail -n 1)
    printf '| attack | messages | half, ms | 99 of 100, ms | memory, MiB | data folder, MiB |\n|---|---|---|---|---|---|\n'
    printf '| none | | %s | %s | | |\n' "$(victim_wait 50 "$from" "$EPOCHREALTIME")" "$alone"
    attack 'topics of 60,000 bytes' 10 flood long_topic
    attack "20,000 properties, to the victim's function" 2 properties
    attack '200 KB of properties to a slow function' 2 slow_properties
    attack 'payloads of 250 KB' 10 payloads
    attack 'runs to the deadline' 4 flood spin
    attack 'runs of a second' 2 flood long_spin
    attack '64 MiB of memory' 4 flood memory
    attack '60,000 bytes of state per topic' 20 flood state
    attack 'alerts of control characters, 60 KB as recorded' 20 control_characters
    attack '64 publications to each other' 1 fan_out
    attack 'faults and exceeded limits' 10 flood crash
    attack 'many alerts' 100 alerts
    attack 'alert keys of 60,000 bytes' 20 keys
    attack '32 log lines per run' 50 log
    attack 'noise instead of orders' 20 flood noise

    rm "$work/victim.runs"
    sleep 1
    until_true 180 "all of the victim's records" victim_has "$(victim_sent)"
    # `count` has counted each message once, and upstream has each once.
    diff <(seq "$(victim_sent)" | awk '{ print $1, $1 }') <(awk -F '[\t: ]' '!seen[$2]++ { print $2, $4 }' "$work/victim") >"$work/wrong" ||
        fail "results of the victim are missing or wrong (< expected, > received), the first: $(head -n 10 "$work/wrong")"
    last=$(states | tail -n 1)
    [ "$(cut -d ' ' -f 1,2 <<<"$last")" = "$(cut -d ' ' -f 1,2 <<<"$first")" ] ||
        fail "the service ended: process and restarts were $(cut -d ' ' -f 1,2 <<<"$first"), and are $(cut -d ' ' -f 1,2 <<<"$last")"
    states | awk -v most=$folder_max '$7 > most { exit 1 }' || fail "the data folder was larger than $folder_max bytes"
    printf '%s: attacked, %d records of the victim, each right and once; the service never ended\n' "$name" "$(victim_sent)"
    awk '{ printf "memory of the unit: at most %.0f of %.0f MiB with files in memory, %d processes killed for it\n", $4 / 1048576, $5 / 1048576, $6 }' <<<"$last"
    [ -n "$slow" ] || return 0
    slow="99 of 100 messages of the victim wait $alone ms without an attack, and during it:$slow"
    [ "$alone" -ge $((wait_max / 5)) ] || fail "$slow at most $wait_max ms are permitted"
    printf 'the emulator is slow: %s\n' "${slow%;}"
}
