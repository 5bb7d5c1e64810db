# shellcheck shell=bash
# A session: the brokers and the command that one run of `tests/run` or of `with`
# starts, and the certainty that none of them outlives it. Sourced, after
# common.sh, by a script that runs with `set -euo pipefail`:
#
#   session_open             makes the session's folder and the traps that close it
#   session_brokers 3.10 4.0 starts these brokers; exports LEVERET_TEST_BROKERS
#   session_run COMMAND...   runs a command (or a function) that ends with the session
#
# The session ends with the script, however that ends. On exit, ^C, SIGTERM and
# SIGHUP the script itself stops everything. Against SIGKILL there is a guard: a
# process that waits for the session's lock, which the kernel frees when the
# script dies, and then stops everything in its place. Should the guard die too,
# the next session finds the lock free and clears up.

broker_scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# File descriptor 9 holds the lock and must reach nothing that may outlive the
# script, so whatever is started in the background gets `9>&-`.
session_open() {
  local cache abandoned
  cache=$(cache_folder)
  # Opening is one at a time: nobody clears up a session that is half made.
  exec 8>"$cache/sessions.lock"
  flock 8
  for abandoned in "$cache"/session.*/; do
    [ -e "$abandoned/session.lock" ] || continue
    flock --nonblock "$abandoned/session.lock" "$broker_scripts/down" "${abandoned%/}" || true
  done
  session=$(mktemp -d "$cache/session.XXXXXX")
  exec 9>"$session/session.lock"
  flock 9
  exec 8>&-
  setsid flock "$session/session.lock" "$broker_scripts/down" "$session" </dev/null >/dev/null 2>&1 9>&- &
  guard=$!
  disown
  trap session_close EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

session_close() {
  trap '' HUP INT TERM
  # Asked to end, a command has a chance to tidy up before it is made to.
  if [ -e "$session/job.process" ]; then stop_recorded "$session/job.process" TERM || true; fi
  kill "$guard" 2>/dev/null || true
  "$broker_scripts/down" "$session"
}

# The command runs in its own process group, so that all of it can be stopped,
# and in the background, so that a signal interrupts the waiting and not only the
# command. It has no standard input: a terminal would stop it for reading there.
# The shell that leads the group stays until its command is done: it handles
# SIGTERM, by doing nothing, and so waits on, while the command is ended by it.
session_run() { # COMMAND...
  local status=0
  set -m
  (
    set +m
    trap : TERM
    record_process "$BASHPID" "$session/job.process"
    "$@"
  ) </dev/null 9>&- &
  set +m
  wait $! || status=$?
  rm -f "$session/job.process"
  return "$status"
}

# All at once: a start is more waiting than work.
start_nodes() { # HOME...
  local home number=0 starting=() status=0 pid
  for home in "$@"; do
    number=$((number + 1))
    "$broker_scripts/up" "$home" "$session/broker-$number" >"$session/row-$number" &
    starting+=($!)
  done
  for pid in "${starting[@]}"; do wait "$pid" || status=1; done
  return "$status"
}

session_brokers() { # 3.10|4.0|newest...
  local release home homes=()
  for release in "$@"; do
    home=$("$broker_scripts/home" "$release") || return 1
    homes+=("$home")
  done
  session_run start_nodes "${homes[@]}" || return 1
  cat "$session"/row-* >"$session/brokers"
  export LEVERET_TEST_BROKERS=$session/brokers
}

# After a failure the brokers' logs are worth more than their data: they stay.
session_keep_logs() {
  local kept log
  kept=$(cache_folder)/logs
  rm -rf "$kept"
  for log in "$session"/broker-*/log; do
    [ -d "$log" ] || continue
    mkdir -p "$kept"
    cp -r "$log" "$kept/$(basename "$(dirname "$log")")"
  done
  if [ -d "$kept" ]; then say "the brokers' logs are in $kept"; fi
}
