#!/bin/sh
# Starts dfmr-serve in a container: with the image's own model unless one is named first, and so that on SIGTERM running
# answers finish. Every argument is dfmr-serve's.
set -eu

case "${1:-}" in
  "" | -*) set -- "$DEFAULT_MODEL" --served-model-name "$(basename "$DEFAULT_MODEL")" "$@" ;;
esac

case " $* " in
  *" --shutdown-timeout"*) ;;
  *) set -- "$@" --shutdown-timeout "${SHUTDOWN_TIMEOUT:-60}" ;;
esac

exec dfmr-serve "$@"
