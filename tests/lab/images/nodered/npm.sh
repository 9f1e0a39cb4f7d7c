#!/bin/sh
# npm comes from npm itself: Debian's own drags in hundreds of packages.
exec node /usr/src/node-red/npm/node_modules/npm/bin/npm-cli.js "$@"
