"""Shared by the Python peers: command line, clock, one-line JSON report."""
import argparse
import json
import resource
import sys
import time

RPC_QUEUE = "compare.rpc"


def args():
    p = argparse.ArgumentParser()
    p.add_argument("job")
    p.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/%2f")
    for name, default in (("messages", 10000), ("size", 16), ("prefetch", 1000), ("batch", 1),
                          ("threads", 16), ("inflight", 1000), ("warmup", 0)):
        p.add_argument("--" + name, type=int, default=default)
    p.add_argument("--queue")
    p.add_argument("--rt", default="")
    a = p.parse_args()
    a.src = a.queue or "src.%d.%d" % (a.messages, a.size)
    a.key = a.queue or "compare.drop"
    return a


def body(a):
    return bytes(i & 0x7F for i in range(min(a.size, 1 << 20))) * max(1, a.size >> 20) if a.size > 1 << 20 \
        else bytes(i & 0x7F for i in range(a.size))


def status_kb(key):
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(key):
                return int(line.split()[1])
    return 0


class Run:
    def __init__(self, peer, a):
        self.peer, self.a = peer, a
        self.rss = status_kb("VmRSS:")
        self.r = resource.getrusage(resource.RUSAGE_SELF)
        self.c = time.process_time()
        self.t = time.perf_counter()

    def finish(self, messages, nbytes, lat=None):
        t, c = time.perf_counter(), time.process_time()
        r, s = resource.getrusage(resource.RUSAGE_SELF), self.r
        o = dict(peer=self.peer, job=self.a.job, messages=messages, bytes=nbytes, wall_s=round(t - self.t, 6),
                 user_s=round(r.ru_utime - s.ru_utime, 6), sys_s=round(r.ru_stime - s.ru_stime, 6),
                 cpu_s=round(c - self.c, 6), max_rss_kb=status_kb("VmHWM:"), rss_start_kb=self.rss,
                 rss_end_kb=status_kb("VmRSS:"), nvcsw=r.ru_nvcsw - s.ru_nvcsw, nivcsw=r.ru_nivcsw - s.ru_nivcsw,
                 minflt=r.ru_minflt - s.ru_minflt)
        if lat:
            lat.sort()
            q = lambda p: round(lat[int((len(lat) - 1) * p)] / 1e3, 3)
            o.update(p50_us=q(.5), p90_us=q(.9), p99_us=q(.99), p999_us=q(.999),
                     mean_us=round(sum(lat) / len(lat) / 1e3, 3))
        print(json.dumps(o), flush=True)


def unsupported(why):
    print("unsupported: " + why, file=sys.stderr)
    sys.exit(3)


now = time.perf_counter_ns
