#!/bin/sh
# As root: only the data folder is given to the broker's user, as the official image of the 2.1
# line does; what lies in config, log or secrets must be readable for it already.
if [ "$(id -u)" = 0 ] && [ -d /mosquitto/data ]; then
    chown -R "${PUID:-1883}:${PGID:-1883}" /mosquitto/data 2>/dev/null || true
fi
# The broker becomes process 1 and so gets every signal itself.
exec "$@"
