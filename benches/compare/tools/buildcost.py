#!/usr/bin/env python3
"""Crates, clean build times (cargo build -j2) and stripped size of a hello-world publisher.

    buildcost.py [variant ...] [--reps 1]      results: a markdown table and one JSON line each
"""
import argparse
import json
import os
import re
import resource
import shutil
import statistics as st
import subprocess
import time

HERE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "buildcost"))
OUT = os.path.join(os.environ.get("CARGO_TARGET_DIR") or
                   os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "perf"), "buildcost")
TOKIO = 'tokio = { version = "1", features = ["rt-multi-thread", "macros"] }\n'

# variant: (program, dependencies)
V = {
    "std": ("std", ""),
    "std-rustls": ("std-rustls", 'rustls = { version = "0.23", default-features = false, features = ["ring", "std", "tls12"] }\n'),
    "lapin": ("lapin", 'lapin = "4"\n' + TOKIO),
    "lapin-notls": ("lapin", 'lapin = { version = "4", default-features = false, features = ["tokio"] }\n' + TOKIO),
    "amqprs": ("amqprs", 'amqprs = "2"\n' + TOKIO),
    "amqprs-tls": ("amqprs", 'amqprs = { version = "2", features = ["tls"] }\n' + TOKIO),
    "amiquip": ("amiquip", 'amiquip = "0.4"\n'),
    "amiquip-notls": ("amiquip", 'amiquip = { version = "0.4", default-features = false }\n'),
}
CRATE = os.path.abspath(os.path.join(HERE, "..", "..", ".."))
for tag, feat in (("leveret", ""), ("leveret-tls", '"tls"'), ("leveret-broker", '"broker"'), ("leveret-json", '"json"'),
                  ("leveret-coroutines", '"coroutines"'), ("leveret-all", '"tls", "broker", "json", "coroutines"')):
    V[tag] = ("leveret", 'leveret = { path = "%s", default-features = false, features = [%s] }\n' % (CRATE, feat))


def build(src, target, release):
    shutil.rmtree(target, ignore_errors=True)
    env = {**os.environ, "CARGO_TARGET_DIR": target, "CARGO_INCREMENTAL": "0" if release else "1"}
    env.pop("RUSTFLAGS", None)
    r0, t0 = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    p = subprocess.run(["cargo", "build", "-j2", "--offline"] + (["--release"] if release else []), cwd=src, env=env,
                       capture_output=True, text=True)
    wall, r1 = time.time() - t0, resource.getrusage(resource.RUSAGE_CHILDREN)
    if p.returncode:
        raise SystemExit(p.stderr)
    return wall, r1.ru_utime + r1.ru_stime - r0.ru_utime - r0.ru_stime, len(re.findall(r"^\s*Compiling ", p.stderr, re.M)) - 1


ap = argparse.ArgumentParser()
ap.add_argument("variants", nargs="*")
ap.add_argument("--reps", type=int, default=1)
a = ap.parse_args()
print("| variant | crates | debug s (cpu s) | release s (cpu s) | stripped KiB | unstripped KiB |\n|---|---|---|---|---|---|")
for v in a.variants or V:
    prog, deps = V[v]
    src = os.path.join(OUT, v)
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(os.path.join(HERE, prog), src)
    t = open(os.path.join(src, "Cargo.toml.in")).read().replace("@DEPS@", deps)
    open(os.path.join(src, "Cargo.toml"), "w").write(t)
    subprocess.run(["cargo", "fetch", "-q"], cwd=src, check=True)
    res = {False: [], True: []}
    for _ in range(a.reps):
        for rel in (False, True):
            res[rel].append(build(src, os.path.join(src, "target"), rel))
            if rel:
                b = os.path.join(src, "target", "release", "hello-" + prog)
                size = os.path.getsize(b)
                subprocess.run(["strip", "-s", "-o", b + ".s", b], check=True)
                stripped = os.path.getsize(b + ".s")
    m = lambda rel, i: st.median(x[i] for x in res[rel])
    print("| %s | %d | %.1f (%.1f) | %.1f (%.1f) | %d | %d |" % (v, m(True, 2), m(False, 0), m(False, 1), m(True, 0), m(True, 1),
                                                              stripped // 1024, size // 1024), flush=True)
    print(json.dumps(dict(variant=v, crates=m(True, 2), debug_s=m(False, 0), debug_cpu_s=m(False, 1), release_s=m(True, 0),
                          release_cpu_s=m(True, 1), stripped=stripped, size=size)), file=open(os.path.join(OUT, "buildcost.jsonl"), "a"))
    shutil.rmtree(os.path.join(src, "target"), ignore_errors=True)
