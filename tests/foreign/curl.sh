#!/usr/bin/env bash
# A stranger with nothing but `buf curl`: services by reflection, and one call of each.
#
#   curl.sh HOST:PORT        (BUF names the program, `buf` otherwise)
set -euo pipefail

server="http://$1"
buf="${BUF:-buf}"
topic="curl"

call() { # METHOD JSON
    "$buf" curl --protocol grpc --http2-prior-knowledge --reflect --data "$2" "$server/rimstone.v1.$1"
}
expect() { # WHAT PATTERN TEXT
    grep -Eq "$2" <<<"$3" || { echo "$1: no $2 in: $3" >&2; exit 1; }
}

services=$("$buf" curl --protocol grpc --http2-prior-knowledge --reflect --list-services "$server")
for service in ProduceService ConsumeService AdminService GroupService LagService ReplayService; do
    expect "list of services" "^rimstone\.v1\.$service$" "$services"
done
methods=$("$buf" curl --protocol grpc --http2-prior-knowledge --reflect --list-methods "$server")
expect "list of methods" "rimstone\.v1\.ProduceService/ProduceStream" "$methods"

expect create '"partitions": *2' "$(call AdminService/CreateTopic "{\"topic\":\"$topic\",\"partitions\":2}")"
# Bytes are base64 in JSON: "key", "value".
answer=$(call ProduceService/Produce "{\"topic\":\"$topic\",\"records\":[{\"key\":\"a2V5\",\"value\":\"dmFsdWU=\",\"partition\":1}]}")
expect produce '"appendTimeMs"' "$answer"
answer=$(call ConsumeService/Fetch "{\"topic\":\"$topic\",\"partitions\":[{\"partition\":1}],\"maxWaitMs\":1000}")
expect fetch '"value": *"dmFsdWU="' "$answer"
answer=$(call ConsumeService/Read "{\"topic\":\"$topic\",\"start\":{\"earliest\":{}},\"end\":{\"latest\":{}}}")
expect read '"key": *"a2V5"' "$answer"
expect describe '"syncMethod"' "$(call AdminService/DescribeServer '{}')"
answer=$(call ProduceService/InitProducer '{"name":"curl"}')
expect "name a producer" '"producerId"' "$answer"
answer=$(printf '%s\n' '{"open":{}}' \
    "{\"append\":{\"correlationId\":\"7\",\"request\":{\"topic\":\"$topic\",\"records\":[{\"value\":\"dmFsdWU=\"}]}}}" |
    "$buf" curl --protocol grpc --http2-prior-knowledge --reflect --data @- "$server/rimstone.v1.ProduceService/ProduceStream")
expect "produce on a stream" '"correlationId": *"7"' "$answer"

# A group: its offsets, its lag, a clone, a plan, a member that comes and goes.
offset="{\"topic\":\"$topic\",\"partition\":1,\"offset\":\"1\",\"metadata\":\"by hand\"}"
answer=$(call GroupService/CommitOffsets "{\"group\":\"curl\",\"offsets\":[$offset]}")
expect commit '"partition": *1' "$answer"
expect "fetch offsets" '"metadata": *"by hand"' "$(call GroupService/FetchOffsets '{"group":"curl"}')"
expect "list groups" '"state": *"GROUP_STATE_EMPTY"' "$(call GroupService/ListGroups '{"prefix":"curl"}')"
expect "describe a group" '"group": *"curl"' "$(call GroupService/DescribeGroup '{"group":"curl"}')"
expect lag '"committedOffset": *"1"' "$(call LagService/GetLag '{"groups":["curl"]}')"
answer=$(call ReplayService/PlanReplay '{"spec":{"group":"curl","earliest":{}}}')
expect "plan a replay" '"oldOffset": *"1"' "$answer"
expect clone '"offset": *"1"' "$(call GroupService/CloneGroup '{"source":"curl","target":"curl-clone"}')"
call GroupService/DeleteGroup '{"group":"curl-clone"}' >/dev/null
answer=$(printf '%s\n' "{\"join\":{\"group\":\"curl-members\",\"memberId\":\"curl\",\"topics\":[\"$topic\"]}}" \
    '{"leave":{"forGood":true}}' |
    "$buf" curl --protocol grpc --http2-prior-knowledge --reflect --data @- "$server/rimstone.v1.ConsumeService/Consume")
expect "join and leave" '"memberId": *"curl"' "$answer"

# An error explains itself.
if answer=$(call AdminService/DescribeTopic '{"topic":"none"}' 2>&1); then
    echo "a topic that is not there was described: $answer" >&2
    exit 1
fi
expect "error code" 'not_found' "$answer"
expect "error details" 'google\.rpc\.ErrorInfo' "$answer"
info=$(sed -n 's/.*"value": *"\([^"]*\)".*/\1/p' <<<"$answer" | base64 --decode | tr '\0' ' ')
expect "error reason" 'TOPIC_NOT_FOUND.*rimstone\.v1' "$(tr '\n' ' ' <<<"$info")"
echo "buf curl: 6 services listed, 16 calls by reflection, 1 error explained"
