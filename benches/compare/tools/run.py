#!/usr/bin/env python3
"""Interleaved runs of the peers; one JSON line per run goes to --out.  See README.md.

    run.py --jobs J1,J3 --peers raw,lapin --reps 5 --out results.jsonl
    run.py --broker amqp://guest:guest@127.0.0.1:5672/%2f ...   a real broker instead of wire
    run.py --mode one ...                                        wire and client share one CPU
"""
import argparse
import json
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BIN = os.path.join(os.environ.get("CARGO_TARGET_DIR") or
                   os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "perf"),
                   "release")
PY = os.environ.get("PERF_PYTHON", sys.executable)
PYDIR = os.path.join(HERE, "..", "peers", "python")


def peer(name, *extra, **env):
    return ([os.path.join(BIN, "peer-" + name)], list(extra), env)


def pypeer(name):
    return ([PY, os.path.join(PYDIR, "peer_%s.py" % name)], [], {})


PEERS = {
    "raw": peer("raw", "--batch", "0"),
    "raw-1w": peer("raw", "--batch", "1"),          # one write(2) per message; publishing jobs only
    "raw-handoff": peer("raw"),      # dedicated reader thread      } design limits, see peers/raw
    "raw-leader": peer("raw"),       # a waiting caller reads for all }
    "leveret": peer("leveret"),
    "leveret-inline": peer("leveret", "--rt", "inline"),
    "rabbitmq-c": peer("rabbitmq-c"),
    "amiquip": peer("amiquip"),
    "amiquip-1k": peer("amiquip", PERF_AMIQUIP_BOUND="1024"),
    "amqprs": peer("amqprs"),
    "amqprs-ct": peer("amqprs", "--rt", "current"),
    "lapin": peer("lapin"),
    "lapin-ct": peer("lapin", "--rt", "current"),
    "amqp091-go": peer("amqp091-go"),
    "pika": pypeer("pika"),
    "py-amqp": pypeer("pyamqp"),
}
MAIN = "raw,raw-1w,leveret,rabbitmq-c,amiquip,amqprs,lapin,amqp091-go,pika,py-amqp"
K64 = 65536
M64 = 64 << 20

# id: (job, size, options, pilot count, most messages on wire, most on a broker, fixed count or 0)
JOBS = {
    "J1-16": ("publish", 16, {}, 4000, 20_000_000, 2_000_000, 0),
    "J1-1k": ("publish", 1024, {}, 4000, 1_500_000, 500_000, 0),
    "J1-64k": ("publish", K64, {}, 200, 30_000, 4_000, 0),
    "J2a-16": ("confirm-sync", 16, {}, 500, 200_000, 20_000, 0),
    "J2b-16": ("confirm-window", 16, {"inflight": 1000}, 4000, 8_000_000, 400_000, 0),
    "J2b-16m": ("confirm-window", 16, {"inflight": 1000}, 4000, 8_000_000, 0, 0),
    "J2b-1k": ("confirm-window", 1024, {"inflight": 1000}, 4000, 1_500_000, 200_000, 0),
    "J3-16": ("consume", 16, {}, 4000, 20_000_000, 200_000, 0),
    "J3-1k": ("consume", 1024, {}, 4000, 1_500_000, 100_000, 0),
    "J3-64k": ("consume", K64, {}, 200, 30_000, 2_000, 0),
    "J4a-16": ("consume-ack", 16, {"prefetch": 1000, "batch": 1}, 4000, 8_000_000, 100_000, 0),
    "J4b-16": ("consume-ack", 16, {"prefetch": 1000, "batch": 100}, 4000, 8_000_000, 100_000, 0),
    "J5": ("rpc", 16, {}, 500, 200_000, 10_000, 0),
    "J6a-16": ("mt-publish", 16, {"threads": 16}, 8000, 20_000_000, 1_000_000, 0),
    "J6b": ("mt-rpc", 16, {"threads": 16}, 1600, 800_000, 40_000, 0),
    "J7-16": ("pingpong", 16, {"warmup": 200}, 500, 100_000, 5_000, 0),
    "J8": ("churn", 16, {}, 20, 5_000, 300, 0),
    "J9a": ("idle-channels", 16, {}, 0, 0, 0, 1000),
    "J9b": ("idle-consumers", 16, {}, 0, 0, 0, 1000),
    "J10a": ("publish", M64, {}, 0, 0, 0, 2),
    "J10b": ("consume", M64, {}, 0, 0, 0, 2),
}


def start_wire(ack, cpu):
    cmd = [os.path.join(BIN, "wire"), "--port", "0", "--ack", ack]
    if cpu is not None:
        cmd = ["taskset", "-c", str(cpu)] + cmd
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True)
    line = p.stdout.readline()
    port = int(line.rsplit(":", 1)[1])
    return p, "amqp://guest:guest@127.0.0.1:%d/%%2f" % port


def once(name, url, job, size, opts, n, cpu, timeout=90):
    cmd, extra, env = PEERS[name]
    if name in ("raw-handoff", "raw-leader"):
        job += name[3:]
    args = {"url": url, "messages": n, "size": size, **opts}
    full = cmd + [job] + [x for k, v in args.items() for x in ("--" + k, str(v))]
    extra = list(extra)
    if extra[:1] == ["--batch"] and job == "consume-ack":
        extra = []          # batch means acks there
    full += extra
    if cpu is not None:
        full = ["taskset", "-c", str(cpu)] + full
    try:
        r = subprocess.run(full, capture_output=True, text=True, timeout=timeout, env={**os.environ, "RUST_BACKTRACE": "0", **env})
    except subprocess.TimeoutExpired:
        return {"error": "timeout"}
    for line in r.stdout.splitlines():
        if line.startswith("{"):
            return json.loads(line)
    if r.returncode == 3:
        return {"error": "n/a"}
    return {"error": " / ".join(x for x in r.stderr.strip().splitlines() if not x.startswith("note:"))[:200] or "rc %d" % r.returncode}


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--jobs", default="all", help="ids or prefixes, comma separated (J1 = J1-16, J1-1k, J1-64k)")
    ap.add_argument("--peers", default=MAIN)
    ap.add_argument("--reps", type=int, default=5)
    ap.add_argument("--seconds", type=float, default=0.5, help="wanted length of a run")
    ap.add_argument("--mode", choices=["free", "one"], default="free")
    ap.add_argument("--cpu", type=int, default=0)
    ap.add_argument("--broker")
    ap.add_argument("--out", default="results.jsonl")
    a = ap.parse_args()
    want = a.jobs.split(",")
    jobs = [j for j in JOBS if a.jobs == "all" or any(j.startswith(w) and not j[len(w):len(w) + 1].isdigit() for w in want)]
    names = [p for p in a.peers.split(",") if os.path.exists(PEERS[p][0][-1])]
    cpu = a.cpu if a.mode == "one" else None
    wires = []
    urls = {}
    if a.broker:
        urls = {"each": a.broker, "multi": a.broker}
    else:
        for ack in ("each", "multi"):
            p, u = start_wire(ack, cpu)
            wires.append(p)
            urls[ack] = u
    target = "rabbitmq" if a.broker else "wire"
    try:
        with open(a.out, "a") as out:
            for j in jobs:
                job, size, opts, n0, cap, bcap, fixed = JOBS[j]
                url = urls["multi" if j.endswith("m") else "each"]
                if a.broker and not (bcap or fixed):
                    continue
                cap = bcap if a.broker else cap
                fill = a.broker and job.startswith("consume")

                def go(name, n):
                    if fill:
                        f = once("raw", url, "fill", size, {}, n, None)
                        if "error" in f:
                            return {"error": "fill: " + f["error"]}
                        time.sleep(0.2)
                    r = once(name, url, job, size, opts, n, cpu)
                    if fill:
                        once("raw", url, "drop-queue", size, {}, n, None)
                    return r

                counts = {}
                for name in names:
                    if name == "raw-1w" and job not in ("publish", "mt-publish"):
                        continue
                    if name == "raw-1w" and size > K64:
                        continue
                    if fixed:
                        counts[name] = fixed
                        continue
                    n = n0
                    for _ in range(3):
                        r = go(name, n)
                        if "error" in r:
                            break
                        want_n = int(n / max(r["wall_s"], 1e-4) * a.seconds)
                        want_n = max(16, min(want_n, cap))
                        if want_n < 4 * n:
                            n = want_n
                            break
                        n = min(want_n, 20 * n)
                    if "error" in r:
                        print("%-8s %-12s %s" % (j, name, r["error"]), flush=True)
                        if r["error"] != "n/a":
                            out.write(json.dumps({"id": j, "variant": name, "target": target, "mode": a.mode, "error": r["error"]}) + "\n")
                        continue
                    counts[name] = n
                for rep in range(a.reps):
                    order = list(counts)
                    order = order[rep % len(order):] + order[:rep % len(order)] if order else []
                    for name in order:
                        r = go(name, counts[name])
                        r.update(id=j, variant=name, target=target, mode=a.mode, rep=rep, size=size)
                        out.write(json.dumps(r) + "\n")
                        out.flush()
                print("%-8s done: %s" % (j, " ".join("%s=%d" % x for x in counts.items())), flush=True)
    finally:
        for p in wires:
            p.terminate()
            p.wait()


if __name__ == "__main__":
    main()
