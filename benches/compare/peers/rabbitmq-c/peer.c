/* rabbitmq-c (Debian librabbitmq-dev): blocking, not thread safe.  Same command line and report
   as the other peers.  Build: cc -O2 -o peer-rabbitmq-c peer.c -lrabbitmq -lpthread */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <amqp.h>
#include <amqp_tcp_socket.h>

#define ME "rabbitmq-c"
#define RPCQ "compare.rpc"

static const char *job, *queue;
static char user[64] = "guest", pass[64] = "guest", host[64] = "127.0.0.1", vhost[64] = "/";
static int port = 5672;
static uint64_t n = 10000, size = 16, prefetch = 1000, batch = 1, inflight = 1000, warmup = 0;

static void die(const char *m) { fprintf(stderr, "%s\n", m); exit(1); }
#define CK(e, m) do { int _r = (e); if (_r < 0) { fprintf(stderr, "%s: %s\n", m, amqp_error_string2(_r)); exit(1); } } while (0)
static void ok(amqp_rpc_reply_t r, const char *m) {
  if (r.reply_type != AMQP_RESPONSE_NORMAL) die(m);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

struct snap { uint64_t at; double user, sys, cpu; long v, iv, flt; };
static struct snap snap(void) {
  struct snap s;
  struct rusage r;
  struct timespec t;
  getrusage(RUSAGE_SELF, &r);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  s.user = (double)r.ru_utime.tv_sec + (double)r.ru_utime.tv_usec / 1e6;
  s.sys = (double)r.ru_stime.tv_sec + (double)r.ru_stime.tv_usec / 1e6;
  s.cpu = (double)t.tv_sec + (double)t.tv_nsec / 1e9;
  s.v = r.ru_nvcsw; s.iv = r.ru_nivcsw; s.flt = r.ru_minflt;
  s.at = now_ns();
  return s;
}
static long status_kb(const char *k) {
  char line[256];
  long v = 0;
  FILE *f = fopen("/proc/self/status", "r");
  if (!f) return 0;
  while (fgets(line, sizeof line, f))
    if (!strncmp(line, k, strlen(k))) { v = atol(line + strlen(k)); break; }
  fclose(f);
  return v;
}
static struct snap s0;
static long rss0;
static void start(void) { rss0 = status_kb("VmRSS:"); s0 = snap(); }
static int cmp(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}
static void finish(uint64_t m, uint64_t bytes, uint64_t *lat, uint64_t nl) {
  struct snap e = snap();
  long end = status_kb("VmRSS:"), peak = status_kb("VmHWM:");
  printf("{\"peer\":\"" ME "\",\"job\":\"%s\",\"messages\":%llu,\"bytes\":%llu,\"wall_s\":%.6f,\"user_s\":%.6f,\"sys_s\":%.6f,\"cpu_s\":%.6f,\"max_rss_kb\":%ld,\"rss_start_kb\":%ld,\"rss_end_kb\":%ld,\"nvcsw\":%ld,\"nivcsw\":%ld,\"minflt\":%ld",
         job, (unsigned long long)m, (unsigned long long)bytes, (double)(e.at - s0.at) / 1e9, e.user - s0.user,
         e.sys - s0.sys, e.cpu - s0.cpu, peak, rss0, end, e.v - s0.v, e.iv - s0.iv, e.flt - s0.flt);
  if (lat && nl) {
    double mean = 0;
    qsort(lat, nl, sizeof *lat, cmp);
    for (uint64_t i = 0; i < nl; i++) mean += (double)lat[i];
#define Q(p) ((double)lat[(uint64_t)((double)(nl - 1) * (p))] / 1e3)
    printf(",\"p50_us\":%.3f,\"p90_us\":%.3f,\"p99_us\":%.3f,\"p999_us\":%.3f,\"mean_us\":%.3f", Q(.5), Q(.9), Q(.99), Q(.999), mean / (double)nl / 1e3);
  }
  printf("}\n");
  fflush(stdout);
}

static amqp_connection_state_t dial(void) {
  amqp_connection_state_t c = amqp_new_connection();
  amqp_socket_t *s = amqp_tcp_socket_new(c);
  if (!s) die("socket");
  if (amqp_socket_open(s, host, port)) die("connect");
  ok(amqp_login(c, vhost, 2047, 131072, 0, AMQP_SASL_METHOD_PLAIN, user, pass), "login");
  return c;
}
static void chan(amqp_connection_state_t c, int ch) {
  amqp_channel_open(c, (amqp_channel_t)ch);
  ok(amqp_get_rpc_reply(c), "channel");
}
static void declare(amqp_connection_state_t c, const char *q, int passive, int autodel) {
  amqp_queue_declare(c, 1, amqp_cstring_bytes(q), passive, 0, 0, autodel, amqp_empty_table);
  ok(amqp_get_rpc_reply(c), "declare");
}
static void hangup(amqp_connection_state_t c) {
  amqp_connection_close(c, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(c);
}
static void publish(amqp_connection_state_t c, const char *key, amqp_bytes_t body) {
  CK(amqp_basic_publish(c, 1, amqp_empty_bytes, amqp_cstring_bytes(key), 0, 0, NULL, body), "publish");
}
static void consume(amqp_connection_state_t c, const char *q, const char *tag, int no_ack) {
  amqp_basic_consume(c, 1, amqp_cstring_bytes(q), tag ? amqp_cstring_bytes(tag) : amqp_empty_bytes, 0, no_ack, 0, amqp_empty_table);
  ok(amqp_get_rpc_reply(c), "consume");
}
/* blocks for at least one confirm, then takes what the library has already buffered */
static void confirms(amqp_connection_state_t c, uint64_t *done) {
  do {
    amqp_frame_t f;
    CK(amqp_simple_wait_frame(c, &f), "frame");
    if (f.frame_type == AMQP_FRAME_METHOD && f.payload.method.id == AMQP_BASIC_ACK_METHOD) {
      amqp_basic_ack_t *a = f.payload.method.decoded;
      if (a->multiple) { if (a->delivery_tag > *done) *done = a->delivery_tag; }
      else (*done)++;
    } else if (f.frame_type == AMQP_FRAME_METHOD) die("unexpected method");
    amqp_maybe_release_buffers(c);
  } while (amqp_data_in_buffer(c));
}
static void take(amqp_connection_state_t c, amqp_envelope_t *e) {
  amqp_maybe_release_buffers(c);
  ok(amqp_consume_message(c, e, NULL, 0), "consume_message");
}

static uint64_t ponger_total;
static amqp_bytes_t the_body;
static void *ponger(void *p) {
  amqp_connection_state_t c = p;
  for (uint64_t i = 0; i < ponger_total; i++) {
    amqp_envelope_t e;
    take(c, &e);
    amqp_destroy_envelope(&e);
    publish(c, "loop.pong", the_body);
  }
  hangup(c);
  return NULL;
}

static void parse_url(const char *u) {
  char b[256], *at, *sl, *col;
  if (strncmp(u, "amqp://", 7)) die("url");
  snprintf(b, sizeof b, "%s", u + 7);
  char *h = b;
  if ((at = strchr(b, '@'))) {
    *at = 0;
    h = at + 1;
    if ((col = strchr(b, ':'))) { *col = 0; snprintf(pass, sizeof pass, "%s", col + 1); }
    snprintf(user, sizeof user, "%.60s", b);
  }
  if ((sl = strchr(h, '/'))) {
    *sl = 0;
    if (strcmp(sl + 1, "%2f") && strcmp(sl + 1, "%2F") && sl[1]) snprintf(vhost, sizeof vhost, "%s", sl + 1);
  }
  if ((col = strchr(h, ':'))) { *col = 0; port = atoi(col + 1); }
  snprintf(host, sizeof host, "%.60s", h);
}

int main(int ac, char **av) {
  if (ac < 2) die("usage: peer-rabbitmq-c JOB --url U ...");
  job = av[1];
  for (int i = 2; i + 1 < ac; i += 2) {
    const char *k = av[i], *v = av[i + 1];
    if (!strcmp(k, "--url")) parse_url(v);
    else if (!strcmp(k, "--messages")) n = strtoull(v, 0, 10);
    else if (!strcmp(k, "--size")) size = strtoull(v, 0, 10);
    else if (!strcmp(k, "--prefetch")) prefetch = strtoull(v, 0, 10);
    else if (!strcmp(k, "--batch")) batch = strtoull(v, 0, 10);
    else if (!strcmp(k, "--inflight")) inflight = strtoull(v, 0, 10);
    else if (!strcmp(k, "--warmup")) warmup = strtoull(v, 0, 10);
    else if (!strcmp(k, "--queue")) queue = v;
    else if (strcmp(k, "--threads") && strcmp(k, "--rt")) die("unknown option");
  }
  char src[128];
  if (queue) snprintf(src, sizeof src, "%s", queue);
  else snprintf(src, sizeof src, "src.%llu.%llu", (unsigned long long)n, (unsigned long long)size);
  const char *key = queue ? queue : "compare.drop";
  amqp_bytes_t body = {0, NULL};
  if (!strcmp(job, "publish") || !strncmp(job, "confirm", 7) || !strcmp(job, "pingpong")) {
    char *data = malloc(size ? size : 1);
    for (uint64_t i = 0; i < size; i++) data[i] = (char)(i & 0x7f);
    body.len = size;
    body.bytes = data;
  }
  the_body = body;
  uint64_t *lat = NULL;

  if (!strcmp(job, "churn")) {
    lat = malloc(n * sizeof *lat);
    start();
    for (uint64_t i = 0; i < n; i++) {
      uint64_t t = now_ns();
      amqp_connection_state_t c = dial();
      chan(c, 1);
      ok(amqp_channel_close(c, 1, AMQP_REPLY_SUCCESS), "close");
      hangup(c);
      lat[i] = now_ns() - t;
    }
    finish(n, 0, lat, n);
    return 0;
  }
  if (!strcmp(job, "pingpong")) {
    amqp_connection_state_t a = dial(), b = dial();
    chan(a, 1); chan(b, 1);
    declare(a, "loop.pong", 0, 1); consume(a, "loop.pong", NULL, 1);
    declare(b, "loop.ping", 0, 1); consume(b, "loop.ping", NULL, 1);
    ponger_total = n + warmup;
    lat = malloc(n * sizeof *lat);
    pthread_t th;
    pthread_create(&th, NULL, ponger, b);
    for (uint64_t i = 0; i < n + warmup; i++) {
      if (i == warmup) start();
      amqp_envelope_t e;
      uint64_t t = now_ns();
      publish(a, "loop.ping", body);
      take(a, &e);
      if (i >= warmup) lat[i - warmup] = now_ns() - t;
      amqp_destroy_envelope(&e);
    }
    finish(n, n * size, lat, n);
    pthread_join(th, NULL);
    hangup(a);
    return 0;
  }

  amqp_connection_state_t c = dial();
  chan(c, 1);
  declare(c, RPCQ, 0, 0);
  if (!strcmp(job, "publish")) {
    start();
    for (uint64_t i = 0; i < n; i++) publish(c, key, body);
    declare(c, RPCQ, 1, 0);
    finish(n, n * size, NULL, 0);
  } else if (!strcmp(job, "confirm-sync") || !strcmp(job, "confirm-window")) {
    int sync = !strcmp(job, "confirm-sync");
    uint64_t w = sync ? 1 : inflight, sent = 0, done = 0;
    amqp_confirm_select(c, 1);
    ok(amqp_get_rpc_reply(c), "confirm");
    if (sync) lat = malloc(n * sizeof *lat);
    start();
    while (done < n) {
      uint64_t t = sync ? now_ns() : 0;
      if (sent < n && sent - done < w) { publish(c, key, body); sent++; if (!sync) continue; }
      confirms(c, &done);
      if (sync) lat[sent - 1] = now_ns() - t;
    }
    finish(n, n * size, lat, sync ? n : 0);
  } else if (!strcmp(job, "consume") || !strcmp(job, "consume-ack")) {
    int no_ack = !strcmp(job, "consume");
    uint64_t got = 0, total = 0, first = 0;
    if (!no_ack) {
      amqp_basic_qos(c, 1, 0, (uint16_t)prefetch, 0);
      ok(amqp_get_rpc_reply(c), "qos");
    }
    start();
    consume(c, src, NULL, no_ack);
    while (got < n) {
      amqp_envelope_t e;
      take(c, &e);
      got++;
      total += e.message.body.len;
      first += *(unsigned char *)e.message.body.bytes;
      if (!no_ack) {
        if (batch <= 1) CK(amqp_basic_ack(c, 1, e.delivery_tag, 0), "ack");
        else if (got % batch == 0 || got == n) CK(amqp_basic_ack(c, 1, e.delivery_tag, 1), "ack");
      }
      amqp_destroy_envelope(&e);
    }
    if (!no_ack) declare(c, RPCQ, 1, 0);
    if (total != n * size || first == 1) die("short");
    finish(n, total, NULL, 0);
  } else if (!strcmp(job, "rpc")) {
    lat = malloc(n * sizeof *lat);
    start();
    for (uint64_t i = 0; i < n; i++) {
      uint64_t t = now_ns();
      declare(c, RPCQ, 1, 0);
      amqp_maybe_release_buffers(c);
      lat[i] = now_ns() - t;
    }
    finish(n, 0, lat, n);
  } else if (!strcmp(job, "idle-channels")) {
    start();
    for (uint64_t i = 0; i < n; i++) chan(c, (int)i + 2);
    finish(n, 0, NULL, 0);
  } else if (!strcmp(job, "idle-consumers")) {
    declare(c, "idle.q", 0, 1);
    start();
    for (uint64_t i = 0; i < n; i++) consume(c, "idle.q", NULL, 1);
    finish(n, 0, NULL, 0);
  } else {
    fprintf(stderr, "unsupported: %s\n", job);
    return 3;
  }
  hangup(c);
  return 0;
}
