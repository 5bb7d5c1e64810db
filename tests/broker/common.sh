# shellcheck shell=bash
# What the broker scripts share: where things live, and how a process is named,
# recorded and stopped. Sourced, never run.

# The name of the script that was started, for messages.
program=$(basename "$0")

say() { echo "$program: $*" >&2; }

die() {
  say "$*"
  exit 1
}

# Everything these scripts write is under this folder: `cargo clean` removes it
# all. Inside: one folder per unpacked Debian suite, one session.* per run.
cache_folder() {
  local root target
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  target=${CARGO_TARGET_DIR:-target}
  case "$target" in
    /*) ;;
    *) target=$root/$target ;;
  esac
  mkdir -p "$target/brokers"
  (cd "$target/brokers" && pwd)
}

# Prints when process PID started, in the kernel's ticks; fails when there is no
# such process, or only a zombie that nobody collected. A pid alone may have been
# given to a stranger since; a pid and its birth cannot.
process_birth() { # PID
  local stat fields
  read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
  # The second field is the program's name in parentheses and may hold anything.
  read -ra fields <<<"${stat##*) }"
  [ "${fields[0]}" != Z ] || return 1
  echo "${fields[19]}"
}

# Writes down a process for `stop_recorded`. It must lead its own process group.
record_process() { # PID FILE
  echo "$1 $(process_birth "$1")" >"$2"
}

is_running() { # FILE
  local pid birth
  read -r pid birth 2>/dev/null <"$1" || return 1
  [ "$(process_birth "$pid")" = "$birth" ]
}

# Sends a signal to the group of a recorded process and returns once its leader is
# gone, and with it the rest of the group. Fails when it still runs after 5 seconds.
stop_recorded() { # FILE SIGNAL
  local pid tries=0
  is_running "$1" || return 0
  read -r pid _ <"$1"
  kill -s "$2" -- "-$pid" 2>/dev/null || kill -s "$2" "$pid" 2>/dev/null || true
  while is_running "$1"; do
    tries=$((tries + 1))
    [ "$tries" -le 100 ] || return 1
    sleep 0.05
  done
  kill -s KILL -- "-$pid" 2>/dev/null || true
}

install_packages() { # PACKAGE...
  command -v apt-get >/dev/null || die "$* is missing; I can install it on Debian only"
  [ "$(id -u)" = 0 ] || die "$* is missing; run me once as root, or: apt-get install --no-install-recommends $*"
  say "installing $*"
  local install=(apt-get -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@")
  export DEBIAN_FRONTEND=noninteractive
  # A fresh machine has no package lists, an old one stale ones.
  "${install[@]}" >&2 || {
    apt-get update >&2
    "${install[@]}" >&2
  }
}

# What compiling the crate with TLS needs beside the Rust toolchain: the headers of
# the system's OpenSSL, and the tool that finds them.
need_build_packages() {
  if [ "$(uname -s)" != Linux ]; then return; fi
  if command -v pkg-config >/dev/null && pkg-config --exists openssl; then return; fi
  install_packages libssl-dev pkg-config
}
