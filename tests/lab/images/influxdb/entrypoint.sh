#!/bin/bash
# Behaves like the official image's entrypoint: gives the data to uid 1000, sets the database up
# once when DOCKER_INFLUXDB_INIT_MODE=setup and there is no bolt file, then becomes influxd.
set -eo pipefail

bolt=${INFLUXD_BOLT_PATH:-/var/lib/influxdb2/influxd.bolt}
engine=${INFLUXD_ENGINE_PATH:-/var/lib/influxdb2/engine}
config=/etc/influxdb2
# Where neither is named, influxd would look below the home folder.
export INFLUXD_BOLT_PATH=$bolt INFLUXD_ENGINE_PATH=$engine
export INFLUXD_CONFIG_PATH=${INFLUXD_CONFIG_PATH:-$config}

say() { echo "lab entrypoint: $*" >&2; }

# Any other command than the server is simply run.
if [ "${1:-influxd}" != influxd ] && [ "${1#-}" = "$1" ]; then
    if [ "$1" != run ]; then exec "$@"; fi
fi
if [ "${1:-}" = influxd ]; then shift; fi
if [ "${1:-}" = run ]; then shift; fi

mkdir -p "$(dirname "$bolt")" "$engine"
chmod 700 "$(dirname "$bolt")" "$engine" || true
if [ "$(id -u)" = 0 ]; then
    find "$(dirname "$bolt")" "$engine" "$config" ! -user influxdb -exec chown influxdb '{}' + || true
    exec setpriv --reuid=influxdb --regid=influxdb --init-groups \
        env HOME=/home/influxdb "$0" influxd "$@"
fi

value() { # NAME: the variable, or the text of the file named by NAME_FILE
    local file="${1}_FILE"
    if [ -n "${!file:-}" ] && [ -e "${!file}" ]; then
        cat "${!file}"
    else
        printf %s "${!1:-}"
    fi
}

quote() { # a JSON string
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

seconds() { # 30d, 1w, 12h, 10m, 90s or a plain number, to seconds
    local total=0 rest=$1
    if [[ $rest =~ ^[0-9]+$ ]]; then echo "$rest"; return; fi
    while [[ $rest =~ ^([0-9]+)(w|d|h|m|s)(.*)$ ]]; do
        case ${BASH_REMATCH[2]} in
            w) total=$((total + BASH_REMATCH[1] * 604800)) ;;
            d) total=$((total + BASH_REMATCH[1] * 86400)) ;;
            h) total=$((total + BASH_REMATCH[1] * 3600)) ;;
            m) total=$((total + BASH_REMATCH[1] * 60)) ;;
            s) total=$((total + BASH_REMATCH[1])) ;;
        esac
        rest=${BASH_REMATCH[3]}
    done
    [ -z "$rest" ] || { say "retention not understood: $1"; return 1; }
    echo "$total"
}

setup() {
    local username password org bucket token retention body server address attempt
    username=$(value DOCKER_INFLUXDB_INIT_USERNAME)
    password=$(value DOCKER_INFLUXDB_INIT_PASSWORD)
    token=$(value DOCKER_INFLUXDB_INIT_ADMIN_TOKEN)
    org=${DOCKER_INFLUXDB_INIT_ORG:-}
    bucket=${DOCKER_INFLUXDB_INIT_BUCKET:-}
    if [ -z "$username" ] || [ -z "$password" ] || [ -z "$org" ] || [ -z "$bucket" ]; then
        say "USERNAME, PASSWORD, ORG and BUCKET are all needed to set up"
        exit 1
    fi
    # From here on a failure leaves nothing: a bolt file would look like a finished set-up.
    trap 'say "removing bolt and engine files after a failed set-up"; rm -rf "$bolt" "$engine"/*' EXIT
    retention=$(seconds "${DOCKER_INFLUXDB_INIT_RETENTION:-0}")
    address="127.0.0.1:${INFLUXD_INIT_PORT:-9999}"
    influxd "$@" --http-bind-address="$address" &
    server=$!
    trap 'kill -TERM "$server" 2>/dev/null; wait "$server"; exit 143' TERM INT
    for attempt in $(seq 600); do
        curl --silent --fail --output /dev/null "http://$address/health" && break
        kill -0 "$server" || { say "influxd ended while it was set up"; exit 1; }
        [ "$attempt" -lt 600 ] || { say "influxd did not answer"; exit 1; }
        sleep 0.1
    done
    body="{\"username\":$(quote "$username"),\"password\":$(quote "$password")"
    body="$body,\"org\":$(quote "$org"),\"bucket\":$(quote "$bucket")"
    body="$body,\"retentionPeriodSeconds\":$retention"
    [ -z "$token" ] || body="$body,\"token\":$(quote "$token")"
    printf '%s}' "$body" | curl --silent --show-error --fail-with-body --output /tmp/setup.json \
        --header 'Content-Type: application/json' --data @- "http://$address/api/v2/setup" \
        || { say "set-up refused: $(cat /tmp/setup.json 2>/dev/null)"; exit 1; }
    rm -f /tmp/setup.json
    if command -v influx >/dev/null && [ -n "$token" ] && [ ! -e "$INFLUX_CONFIGS_PATH" ]; then
        printf '[default]\n  url = "http://localhost:8086"\n  token = %s\n  org = %s\n  active = true\n' \
            "$(quote "$token")" "$(quote "$org")" > "$INFLUX_CONFIGS_PATH" || true
    fi
    kill -TERM "$server"
    wait "$server" || true
    trap - EXIT TERM INT
    say "set up organisation $org with bucket $bucket"
}

if [ -n "${DOCKER_INFLUXDB_INIT_MODE:-}" ] && [ ! -f "$bolt" ]; then
    if [ "$DOCKER_INFLUXDB_INIT_MODE" != setup ]; then
        say "only DOCKER_INFLUXDB_INIT_MODE=setup is known here"
        exit 1
    fi
    setup "$@"
fi
exec influxd "$@"
