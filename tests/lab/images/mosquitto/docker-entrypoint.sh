#!/bin/sh
# As root: give everything below /mosquitto to the broker's user, as the official image does. A
# part that is mounted read-only cannot be given away, and that is fine.
if [ "$(id -u)" = 0 ] && [ -d /mosquitto ]; then
    chown -R mosquitto:mosquitto /mosquitto 2>/dev/null || true
fi
# The broker becomes process 1 and so gets every signal itself.
exec "$@"
