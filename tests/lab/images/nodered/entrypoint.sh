#!/bin/bash
# Starts Node-RED beside this shell and hands a stop on to it, as the official image does.

stop() {
    kill -TERM "$server" 2>/dev/null
    wait "$server"
    exit $?
}
trap stop INT TERM

# NODE_OPTIONS and FLOWS are meant to be split into words (or to be nothing at all).
# shellcheck disable=SC2086
node $NODE_OPTIONS node_modules/node-red/red.js --userDir /data $FLOWS "$@" &
server=$!
wait "$server"
